//! Memory that one step after another uses.
//!
//! A decoding step is hundreds of short operations, each with lists and outputs that live for a moment. In a
//! [`team`](crate::team()) memory that is freed stays with its thread, sorted by size, for the next request. So a step
//! allocates nothing once a few were made. Outside of teams memory comes from the system and goes back to it.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use allocator_api2::alloc::{AllocError, Allocator};
use allocator_api2::vec::{IntoIter, Vec as VecIn};

use crate::alloc::{OutOfMemory, with_room, zeros};
use crate::team;

/// Bytes of the smallest block, and the alignment of all.
const LEAST: usize = 64;

/// Blocks are as large as powers of 2.
const SIZES: usize = usize::BITS as usize;

/// The allocator of [`List`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Reuse;

/// A free block; the others of its size follow.
struct Block {
    next: *mut Block,
}

/// The free blocks of a thread, by the logarithms of their sizes.
struct Free([Cell<*mut Block>; SIZES]);

thread_local! {
    static FREE: Free = const { Free([const { Cell::new(ptr::null_mut()) }; SIZES]) };
    /// Values that no tensor has, by the logarithms of their number, rounded down.
    static VALUES: RefCell<[Vec<Arc<Vec<f32>>>; SIZES]> = const { RefCell::new([const { Vec::new() }; SIZES]) };
}

impl Free {
    fn take(&self, size: usize) -> Option<NonNull<Block>> {
        let first = NonNull::new(self.0[size].get())?;
        // SAFETY: a block in the list is live memory that holds a `Block`.
        self.0[size].set(unsafe { first.as_ref() }.next);
        Some(first)
    }

    /// # Safety
    /// Nothing else uses the block, which is of that size.
    unsafe fn put(&self, size: usize, block: NonNull<Block>) {
        // SAFETY: it has room for a `Block`, as `LEAST` has, and is aligned to `LEAST`.
        unsafe { block.write(Block { next: self.0[size].get() }) };
        self.0[size].set(block.as_ptr());
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        for size in 0..SIZES {
            while let Some(block) = self.take(size) {
                if let Ok(layout) = Layout::from_size_align(1 << size, LEAST) {
                    // SAFETY: `Reuse` allocated it with this layout.
                    unsafe { dealloc(block.as_ptr().cast(), layout) };
                }
            }
        }
    }
}

/// The layout of the block for a request, and the logarithm of its size. It depends on the request alone, so that any thread
/// can free it.
fn block_for(request: Layout) -> Result<(Layout, usize), AllocError> {
    let bytes = request.size().checked_next_power_of_two().ok_or(AllocError)?.max(LEAST);
    let layout = Layout::from_size_align(bytes, LEAST).map_err(|_| AllocError)?;
    if request.align() > LEAST { Err(AllocError) } else { Ok((layout, bytes.ilog2() as usize)) }
}

// SAFETY: a block is live from `allocate` to `deallocate`, is at least as large and as aligned as the request, and copies of
// `Reuse` are the same allocator.
unsafe impl Allocator for Reuse {
    fn allocate(&self, request: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let (layout, size) = block_for(request)?;
        let kept = team::is_active().then(|| FREE.try_with(|free| free.take(size)).ok()).flatten().flatten();
        let block = match kept {
            Some(block) => block.cast(),
            // SAFETY: the layout's size is at least `LEAST`.
            None => NonNull::new(unsafe { alloc(layout) }).ok_or(AllocError)?,
        };
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, request: Layout) {
        // It was allocated, so there is one.
        let Ok((layout, size)) = block_for(request) else { return };
        // SAFETY: the caller gives the block up, and `block_for` returned this size when it was allocated.
        let put = |free: &Free| unsafe { free.put(size, block.cast()) };
        if !team::is_active() || FREE.try_with(put).is_err() {
            // SAFETY: it was allocated with this layout.
            unsafe { dealloc(block.as_ptr(), layout) };
        }
    }
}

/// A vector for a moment: in a team, its memory is used again.
#[derive(Clone)]
pub struct List<T>(VecIn<T, Reuse>);

impl<T> List<T> {
    /// An empty list.
    pub const fn new() -> Self {
        Self(VecIn::new_in(Reuse))
    }

    /// An empty list with room for `count` elements.
    pub fn with_room(count: usize) -> Self {
        Self(VecIn::with_capacity_in(count, Reuse))
    }

    /// `count` clones of an element.
    pub fn of(element: T, count: usize) -> Self
    where
        T: Clone,
    {
        let mut list = Self::with_room(count);
        list.resize(count, element);
        list
    }

    /// Splits off the elements from `at` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_off(&mut self, at: usize) -> Self {
        Self(self.0.split_off(at))
    }
}

impl<T, const N: usize> TryFrom<List<T>> for [T; N] {
    type Error = List<T>;

    fn try_from(list: List<T>) -> Result<Self, List<T>> {
        list.0.try_into().map_err(List)
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> Deref for List<T> {
    type Target = VecIn<T, Reuse>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> DerefMut for List<T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let elements = elements.into_iter();
        let mut list = Self::with_room(elements.size_hint().0);
        list.extend(elements);
        list
    }
}

impl<T> Extend<T> for List<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        self.0.extend(elements);
    }
}

impl<T> IntoIterator for List<T> {
    type Item = T;
    type IntoIter = IntoIter<T, Reuse>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut List<T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter_mut()
    }
}

/// The values of tensors, which clones share. In a team their memory is used again.
#[derive(Debug, Clone, Default)]
pub struct Values(Option<Arc<Vec<f32>>>);

impl Values {
    /// `count` zeros.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn zeros(count: usize) -> Result<Self, OutOfMemory> {
        if !team::is_active() {
            return Ok(zeros(count)?.into());
        }
        let mut values = Self::with_room(count)?;
        values.vec_mut().resize(count, 0.0);
        Ok(values)
    }

    /// None yet, not shared, with room for `count`.
    fn with_room(count: usize) -> Result<Self, OutOfMemory> {
        let room = count.checked_next_power_of_two().unwrap_or(count);
        let size = room.trailing_zeros() as usize;
        let kept = VALUES.try_with(|values| values.borrow_mut().get_mut(size).and_then(Vec::pop)).ok().flatten();
        match kept {
            Some(mut kept) => {
                Arc::make_mut(&mut kept).clear();
                Ok(Self(Some(kept)))
            }
            None => Ok(Self(Some(Arc::new(with_room(room)?)))),
        }
    }

    fn vec_mut(&mut self) -> &mut Vec<f32> {
        Arc::make_mut(self.0.get_or_insert_default())
    }

    /// The values, mutable: in place if nothing else has them, else in a copy.
    pub fn make_mut(&mut self) -> &mut [f32] {
        let shared = self.0.as_mut().is_some_and(|values| Arc::get_mut(values).is_none());
        if shared
            && team::is_active()
            && let Ok(mut copy) = Self::with_room(self.len())
        {
            copy.vec_mut().extend_from_slice(self);
            *self = copy;
        }
        self.vec_mut()
    }

    /// The values, moved out if nothing else has them.
    pub fn into_vec(mut self) -> Vec<f32> {
        self.0.take().map(Arc::unwrap_or_clone).unwrap_or_default()
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Self((values.capacity() > 0).then(|| Arc::new(values)))
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_ref().map_or(&[], |values| &values[..])
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        let Some(mut values) = self.0.take() else { return };
        let room = values.capacity();
        if team::is_active() && room > 0 && Arc::get_mut(&mut values).is_some() {
            // At the end of a thread there is no list any more.
            let _ = VALUES.try_with(|kept| kept.borrow_mut()[room.ilog2() as usize].push(values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_uses_memory_again_and_nothing_else_does() {
        team(|| {
            let list: List<u64> = (0..9).collect();
            let values = Values::zeros(1000).unwrap();
            let (first, numbers) = (list.as_ptr(), values.as_ptr());
            drop((list, values));
            let (list, mut values) = (List::of(7u8, 128), Values::zeros(520).unwrap());
            assert_eq!((list.as_ptr().cast(), values.as_ptr()), (first, numbers));
            // A clone that is alive keeps its own.
            values.make_mut()[3] = 5.0;
            let clone = values.clone();
            values.make_mut()[3] = 6.0;
            assert!(clone[3] == 5.0 && values[3] == 6.0 && values[519] == 0.0 && clone.len() == 520);
            let again = Values::zeros(600).unwrap();
            assert!(again.iter().all(|&x| x == 0.0) && again.as_ptr() != numbers);
        });
        let list: List<String> = ["a", "b"].map(str::to_owned).into_iter().collect();
        assert_eq!(list.into_iter().collect::<Vec<_>>().concat(), "ab");
        assert!(Values::default().is_empty() && Values::from(vec![1.0, 2.0]).into_vec() == [1.0, 2.0]);
    }

    #[test]
    fn memory_may_be_freed_elsewhere() {
        let made = team(|| (List::of(1u32, 1000), Values::zeros(77).unwrap()));
        std::thread::spawn(move || team(|| drop(made))).join().unwrap();
    }
}
