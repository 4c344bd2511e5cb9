//! Running out of memory: an error if the caller can return one, else a message.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::os::process::print_and_end;

/// Memory that could not be allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "out of memory: cannot allocate {bytes} more bytes; lower the batch, the length or the model, or raise the limit"
)]
pub struct OutOfMemory {
    /// Bytes of the failed request.
    pub bytes: u64,
}

thread_local! {
    /// Whether the request in progress has a caller that returns an error.
    static FALLIBLE: Cell<bool> = const { Cell::new(false) };
}

/// `count` zeros.
///
/// # Errors
/// If there is no memory for them.
pub fn zeros(count: usize) -> Result<Vec<f32>, OutOfMemory> {
    let failed = OutOfMemory { bytes: (count as u64).saturating_mul(size_of::<f32>() as u64) };
    let layout = Layout::array::<f32>(count).map_err(|_| failed)?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    FALLIBLE.set(true);
    // SAFETY: the layout's size was just checked to be above 0.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    FALLIBLE.set(false);
    if start.is_null() {
        return Err(failed);
    }
    // SAFETY: the block came from the global allocator with the layout of an array of `count` f32, and bytes of 0 are
    // `count` zeros.
    Ok(unsafe { Vec::from_raw_parts(start.cast(), count, count) })
}

/// An empty vector with room for `count` elements.
///
/// # Errors
/// If there is no memory for them.
pub fn with_room<T>(count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut vec = Vec::new();
    FALLIBLE.set(true);
    let reserved = vec.try_reserve_exact(count);
    FALLIBLE.set(false);
    let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
    reserved.map(|()| vec).map_err(|_| OutOfMemory { bytes })
}

/// The system's allocator, for a program. If a request fails and its caller does not return an error ([`zeros`] and
/// [`with_room`] do), the process ends with a message and exit code 1 instead of aborting.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProgramAllocator;

// SAFETY: every request is forwarded to `System` unchanged, and so is its result.
unsafe impl GlobalAlloc for ProgramAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`; the block came from `System`.
        given(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

fn given(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() && !FALLIBLE.get() {
        end(size);
    }
    block
}

/// Prints what failed and ends the process, without allocating.
#[cold]
fn end(size: usize) {
    use std::io::Write;
    let mut text = [0; 256];
    let mut left = &mut text[..];
    // Longer than any message.
    writeln!(left, "error: {}", OutOfMemory { bytes: size as u64 }).ok();
    let unused = left.len();
    let length = text.len() - unused;
    // Where this returns, the standard library aborts.
    print_and_end(&text[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zero_and_can_be_freed() {
        for count in [0, 1, 1000, 1 << 20] {
            let mut numbers = zeros(count).unwrap();
            assert!(numbers.len() == count && numbers.iter().all(|&x| x == 0.0));
            numbers.push(1.0);
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for count in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 4] {
            assert_eq!(zeros(count).unwrap_err().bytes, (count as u64).saturating_mul(4));
            assert!(with_room::<u64>(count).is_err());
        }
        assert_eq!(with_room::<u8>(7).unwrap().capacity(), 7);
    }
}
