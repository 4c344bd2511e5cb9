//! Device memory: a caching allocator.
//!
//! Memory comes from the driver in segments and is split into blocks; a freed block merges with its free neighbours and is
//! reused without calling the driver. This is safe without waiting because kernels run on one stream: the next writer of a
//! block runs after its last reader.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result as driver;

use super::gpu::{Gpu, lock};
use super::pod::Pod;
use super::{Error, Result};

/// Addresses are multiples of this.
const ALIGNMENT: usize = 512;
/// Segments are multiples of this, and at least [`SEGMENT`].
const GRANULE: usize = 2 << 20;
const SEGMENT: usize = 32 << 20;
/// More bytes than any device has: sizes up to it can be rounded up without overflow. A product of sizes that saturates
/// is more.
const MOST: usize = usize::MAX / 4;

/// Device memory, given back to its pool when dropped. Not initialised.
pub struct Buffer(Arc<Allocation>);

/// What a [`Buffer`] owns. A captured graph holds it too, so that what the graph works on is there at every launch.
struct Allocation {
    address: u64,
    bytes: usize,
    pool: Arc<Pool>,
}

/// Keeps memory from being given back.
#[derive(Clone)]
pub(crate) struct Held(Arc<Allocation>);

/// Something that a graph needs for as long as it lives.
pub(super) type Kept = Arc<dyn Any + Send + Sync>;

/// By address, what the graph being captured works on that is not its own.
#[derive(Default)]
struct KeptByCapture(HashMap<usize, Kept>);

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {:?}", self.0.bytes, self.0.pool.gpu)
    }
}

impl Held {
    /// A graph that this thread captures keeps the memory, unless the memory is the graph's own.
    pub(crate) fn keep_in_capture(&self) {
        let Self(allocation) = self;
        let gpu = allocation.pool.gpu;
        if gpu.is_capturing() && !Arc::ptr_eq(&gpu.pool(), &allocation.pool) {
            gpu.keep_for_graph(allocation.clone());
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {:?}", self.bytes(), self.gpu())
    }
}

impl Buffer {
    /// Address of the first byte, a multiple of 512. A graph that is captured meanwhile keeps the memory: who asks for an
    /// address is about to launch something on it.
    pub fn address(&self) -> u64 {
        if self.gpu().is_any_capturing() {
            self.hold().keep_in_capture();
        }
        self.0.address
    }

    /// Requested bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// The device it is on.
    pub fn gpu(&self) -> Gpu {
        self.0.pool.gpu
    }

    /// The memory, to keep it beyond the life of this.
    pub(crate) fn hold(&self) -> Held {
        Held(self.0.clone())
    }

    /// Address of `count` elements from element `from` on, which must all be there.
    ///
    /// # Panics
    /// If they are not, or the buffer is on another device: its stream would not order what is done with them.
    pub(super) fn range<T: Pod>(&self, gpu: Gpu, from: usize, count: usize) -> u64 {
        assert!(self.gpu() == gpu, "{self:?} where memory of {gpu:?} is needed");
        let inside = is_inside(self.bytes(), size_of::<T>(), from, count);
        assert!(inside, "elements {from} and {count} more of {} bytes outside {self:?}", size_of::<T>());
        self.address() + (from * size_of::<T>()) as u64
    }
}

/// Whether elements `from..from + count` of `size` bytes lie inside `bytes` bytes.
fn is_inside(bytes: usize, size: usize, from: usize, count: usize) -> bool {
    let end = from.checked_add(count).and_then(|end| end.checked_mul(size));
    end.is_some_and(|end| end <= bytes)
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.pool.lock().free(self.address);
    }
}

/// The pool that a device allocates from.
#[derive(Debug, Default)]
struct Current(Option<Arc<Pool>>);

impl Gpu {
    pub(crate) fn pool(self) -> Arc<Pool> {
        // Held until the pool is known, as a capture swaps it.
        let _calls = self.wait_for_capture();
        let mut pool = lock(self.cache::<Current>());
        pool.0.get_or_insert_with(|| Pool::new(self)).clone()
    }

    /// Uses another pool from here on; returns the previous one.
    pub(crate) fn swap_pool(self, pool: Arc<Pool>) -> Arc<Pool> {
        let before = lock(self.cache::<Current>()).0.replace(pool);
        before.unwrap_or_else(|| Pool::new(self))
    }

    /// The graph that this thread captures keeps `thing`.
    pub(super) fn keep_for_graph(self, thing: Kept) {
        lock(self.cache::<KeptByCapture>()).0.insert(Arc::as_ptr(&thing).cast::<()>() as usize, thing);
    }

    /// All that was kept for the graph that was just captured.
    pub(super) fn take_kept(self) -> Vec<Kept> {
        std::mem::take(&mut lock(self.cache::<KeptByCapture>()).0).into_values().collect()
    }

    /// Memory that is not initialised, aligned to 512 bytes; given back when dropped.
    ///
    /// # Errors
    /// If there is too little.
    pub fn alloc(self, bytes: usize) -> Result<Buffer> {
        self.pool().alloc(bytes)
    }

    /// Memory held by this process.
    pub fn memory(self) -> MemoryUse {
        self.pool().memory()
    }

    /// Returns unused cached memory to the driver.
    ///
    /// # Errors
    /// If the device failed.
    pub fn trim(self) -> Result<()> {
        self.pool().trim()
    }
}

/// Segments of the driver's memory and the blocks that they are split into.
#[derive(Debug)]
pub(crate) struct Pool {
    gpu: Gpu,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Size of every segment by its address.
    segments: BTreeMap<u64, usize>,
    blocks: BTreeMap<u64, Block>,
    /// Free blocks by size, then address.
    free: BTreeSet<(usize, u64)>,
    used: usize,
    peak: usize,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    size: usize,
    segment: u64,
    free: bool,
}

/// Memory that a process holds on a device, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use now.
    pub used: usize,
    /// Peak of the memory in use.
    pub peak: usize,
    /// Allocated from the driver, in use or cached.
    pub reserved: usize,
}

impl Pool {
    pub(crate) fn new(gpu: Gpu) -> Arc<Self> {
        Arc::new(Self { gpu, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        // Before the lock: who captures takes it, too, while others wait here.
        let _bound = self.gpu.bind()?;
        let mut state = self.lock();
        if bytes > MOST {
            return Err(too_little(&state, bytes));
        }
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let address = match state.take(size) {
            Some(address) => address,
            None => {
                let segment = if size < SEGMENT { SEGMENT } else { size.next_multiple_of(GRANULE) };
                let address = self.segment(&mut state, segment, size)?;
                state.add_segment(address.0, address.1);
                state.take(size).unwrap_or(address.0)
            }
        };
        Ok(Buffer(Arc::new(Allocation { address, bytes, pool: self.clone() })))
    }

    /// Memory from the driver, after returning free segments if there is too little; under [`Gpu::bind`].
    fn segment(&self, state: &mut State, preferred: usize, least: usize) -> Result<(u64, usize)> {
        let least = least.next_multiple_of(GRANULE);
        // SAFETY: the context is current.
        let ask = |size: usize| unsafe { driver::malloc_sync(size) }.ok().map(|address| (address, size));
        let given = ask(preferred).or_else(|| {
            self.release(state);
            ask(least)
        });
        given.ok_or_else(|| too_little(state, least))
    }

    /// Returns segments without a used block to the driver.
    fn release(&self, state: &mut State) {
        let whole: Vec<u64> = state
            .segments
            .iter()
            .filter(|(address, size)| state.blocks.get(address).is_some_and(|b| b.free && b.size == **size))
            .map(|(&address, _)| address)
            .collect();
        for address in whole {
            if let Some(size) = state.segments.remove(&address) {
                state.blocks.remove(&address);
                state.free.remove(&(size, address));
                // SAFETY: the driver gave it, and no block of it is in use; freeing waits for the device.
                let _ = unsafe { driver::free_sync(address) };
            }
        }
    }

    /// Returns unused memory to the driver.
    pub(crate) fn trim(&self) -> Result<()> {
        self.gpu.synchronize()?;
        self.release(&mut self.lock());
        Ok(())
    }

    pub(crate) fn memory(&self) -> MemoryUse {
        let state = self.lock();
        MemoryUse { used: state.used, peak: state.peak, reserved: state.segments.values().sum() }
    }
}

/// Under [`Gpu::bind`].
fn too_little(state: &State, wanted: usize) -> Error {
    let (free, total) = driver::mem_get_info().unwrap_or_default();
    Error::Memory { wanted, used: state.used, free, total }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Ok(_bound) = self.gpu.bind() {
            for &address in self.lock().segments.keys() {
                // SAFETY: every buffer of the pool holds it, so none is left; freeing waits for the device.
                let _ = unsafe { driver::free_sync(address) };
            }
        }
    }
}

impl State {
    fn add_segment(&mut self, address: u64, size: usize) {
        self.segments.insert(address, size);
        self.blocks.insert(address, Block { size, segment: address, free: true });
        self.free.insert((size, address));
    }

    /// The smallest free block that is large enough, split to `size`.
    fn take(&mut self, size: usize) -> Option<u64> {
        let &(found, address) = self.free.range((size, 0)..).next()?;
        self.free.remove(&(found, address));
        let block = self.blocks.get_mut(&address)?;
        (block.size, block.free) = (size, false);
        let segment = block.segment;
        if found > size {
            let rest = address + size as u64;
            self.blocks.insert(rest, Block { size: found - size, segment, free: true });
            self.free.insert((found - size, rest));
        }
        self.used += size;
        self.peak = self.peak.max(self.used);
        Some(address)
    }

    fn free(&mut self, address: u64) {
        let Some(mut block) = self.blocks.remove(&address) else { return };
        self.used -= block.size;
        let mut start = address;
        let next = self.blocks.get(&(address + block.size as u64)).copied();
        if let Some(next) = next.filter(|next| next.free && next.segment == block.segment) {
            let at = address + block.size as u64;
            self.blocks.remove(&at);
            self.free.remove(&(next.size, at));
            block.size += next.size;
        }
        let before = self.blocks.range(..address).next_back().map(|(&at, &before)| (at, before));
        if let Some((at, before)) = before.filter(|(_, before)| before.free && before.segment == block.segment) {
            self.free.remove(&(before.size, at));
            block.size += before.size;
            start = at;
        }
        self.blocks.insert(start, Block { free: true, ..block });
        self.free.insert((block.size, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_would_wrap_are_outside() {
        assert!(is_inside(16, 4, 1, 3) && is_inside(0, 8, 0, 0) && is_inside(16, 4, 4, 0));
        assert!(!is_inside(16, 4, 2, 3) && !is_inside(16, 4, 5, 0));
        let half = 1 << (usize::BITS - 1);
        for (from, count) in [(usize::MAX, 1), (1, usize::MAX), (half, half), (half / 2, 0), (0, half / 2)] {
            assert!(!is_inside(16, 4, from, count), "{from} {count}");
        }
    }

    /// Blocks taken and freed at random never overlap, and all free memory joins again.
    #[test]
    fn blocks_never_overlap_and_join_again() {
        let mut random = crate::testing::Random::new(7);
        let mut state = State::default();
        state.add_segment(1 << 20, 1 << 20);
        state.add_segment(1 << 22, 1 << 19);
        let mut taken: Vec<(u64, usize)> = Vec::new();
        for _ in 0..20_000 {
            if random.below(2) == 0 || taken.is_empty() {
                let size = (random.below(40) + 1) * ALIGNMENT;
                if let Some(address) = state.take(size) {
                    assert!(taken.iter().all(|&(a, s)| address + size as u64 <= a || a + s as u64 <= address));
                    taken.push((address, size));
                }
            } else {
                let (address, _) = taken.swap_remove(random.below(taken.len()));
                state.free(address);
            }
            assert_eq!(state.used, taken.iter().map(|t| t.1).sum::<usize>());
        }
        taken.drain(..).for_each(|(address, _)| state.free(address));
        assert_eq!(state.free.iter().copied().collect::<Vec<_>>(), [(1 << 19, 1 << 22), (1 << 20, 1 << 20)]);
        assert!(state.take((1 << 20) + ALIGNMENT).is_none());
    }
}
