//! Memory of the host that a device reads and writes by itself.

use std::ffi::c_void;

use cudarc::driver::{result as driver, sys};

use super::pod::Pod;
use super::{Buffer, Error, Event, Gpu, Result};

/// Memory of the host that a device copies from and to while the host goes on. Whoever reads or writes it here waits for
/// the copy that was submitted last, so that the two never meet.
#[derive(Debug)]
pub struct Pinned<T: Pod> {
    data: *mut T,
    len: usize,
    gpu: Gpu,
    /// Behind the last copy.
    copied: Event,
}

// SAFETY: it owns its memory.
unsafe impl<T: Pod> Send for Pinned<T> {}
// SAFETY: shared access only reads, and waits by an event that any thread may wait for.
unsafe impl<T: Pod> Sync for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// If the host has no such memory.
    pub fn new(gpu: Gpu, len: usize) -> Result<Self> {
        let copied = gpu.event()?;
        let _bound = gpu.bind()?;
        let Some(bytes) = len.checked_mul(size_of::<T>()).map(|bytes| bytes.max(1)) else {
            return Err(Error::Call { call: "cuMemHostAlloc", reason: format!("{len} elements do not fit in memory") });
        };
        // SAFETY: the context is current.
        let data = unsafe { driver::malloc_host(bytes, 0) }.map_err(Error::driver("cuMemHostAlloc"))?.cast::<T>();
        // SAFETY: `bytes` bytes are there, and zero bits are a value of every `Pod`.
        unsafe { data.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { data, len, gpu, copied })
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements; waits until the last copy is done.
    ///
    /// # Errors
    /// If the device failed.
    pub fn read(&self) -> Result<&[T]> {
        self.copied.wait()?;
        // SAFETY: `len` initialised elements are there as long as `self`. The device has written the last of them, and a
        // further copy to here takes `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.data, self.len) })
    }

    /// The elements, to change; waits until the last copy is done.
    ///
    /// # Errors
    /// If the device failed.
    pub fn write(&mut self) -> Result<&mut [T]> {
        self.copied.wait()?;
        // SAFETY: as in `read`; `self` is borrowed alone, and the device no longer reads them.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.data, self.len) })
    }

    /// Submits a copy of all elements to the beginning of a buffer; does not wait.
    ///
    /// # Errors
    /// If the driver refuses, or a graph is being captured: it would copy again at every launch.
    ///
    /// # Panics
    /// If they do not fit, or the buffer is on another device.
    pub fn send(&mut self, to: &Buffer) -> Result<()> {
        let gpu = self.gpu;
        let address = to.range::<T>(gpu, 0, self.len);
        gpu.refuse_in_capture("cuMemcpyHtoDAsync")?;
        let _bound = gpu.bind()?;
        // SAFETY: `len` elements are there, and nobody writes them before `copied` is done.
        let host = unsafe { std::slice::from_raw_parts(self.data, self.len) };
        // SAFETY: the range is inside the buffer, and pinned memory stays where it is.
        unsafe { driver::memcpy_htod_async(address, host, gpu.stream()) }
            .map_err(Error::driver("cuMemcpyHtoDAsync"))?;
        self.mark()
    }

    /// Submits a copy of the first `count` elements of a buffer to those from `at` on; does not wait.
    ///
    /// # Errors
    /// If the driver refuses, or a graph is being captured.
    ///
    /// # Panics
    /// If the ranges are not inside their memories, or the buffer is on another device.
    pub fn receive(&mut self, at: usize, from: &Buffer, count: usize) -> Result<()> {
        assert!(at <= self.len && count <= self.len - at, "{count} elements from {at} on of {}", self.len);
        let gpu = self.gpu;
        let address = from.range::<T>(gpu, 0, count);
        gpu.refuse_in_capture("cuMemcpyDtoHAsync")?;
        let _bound = gpu.bind()?;
        // SAFETY: both ranges are inside their memories, and nobody reads or writes them before `copied` is done.
        let copied = unsafe {
            let host = self.data.add(at).cast::<c_void>();
            sys::cuMemcpyDtoHAsync_v2(host, address, count * size_of::<T>(), gpu.stream())
        };
        copied.result().map_err(Error::driver("cuMemcpyDtoHAsync"))?;
        self.mark()
    }

    /// Marks the end of a copy. Where that fails the copy is waited for, or nobody would.
    fn mark(&self) -> Result<()> {
        self.copied.record().or_else(|error| self.gpu.synchronize().and(Err(error)))
    }
}

impl<T: Pod> Drop for Pinned<T> {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: the driver gave it, and the device has finished with it.
            let _ = unsafe { driver::free_host(self.data.cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;

    #[test]
    fn what_was_copied_is_read_after_the_copy() {
        let Some(gpu) = gpu() else { return };
        let mut pinned = Pinned::<u32>::new(gpu, 1 << 20).unwrap();
        let buffer = gpu.alloc(4 << 20).unwrap();
        for turn in 0..10 {
            // Before the copy of the turn before is done, unless it is waited for.
            pinned.write().unwrap().fill(turn);
            pinned.send(&buffer).unwrap();
            pinned.write().unwrap().fill(u32::MAX);
            pinned.receive(0, &buffer, 1 << 20).unwrap();
            assert!(pinned.read().unwrap().iter().all(|&x| x == turn), "{turn}");
            // The plain way to write a buffer has read its source when it returns, also where that is pinned.
            pinned.write().unwrap().fill(turn + 100);
            gpu.write(&buffer, 0, pinned.read().unwrap()).unwrap();
            pinned.write().unwrap().fill(u32::MAX);
            pinned.receive(0, &buffer, 1 << 20).unwrap();
            assert!(pinned.read().unwrap().iter().all(|&x| x == turn + 100), "{turn}");
        }
        let (_, refused) = gpu.capture(|| Ok::<_, Error>(pinned.send(&buffer).is_err())).unwrap();
        assert!(refused);
    }
}
