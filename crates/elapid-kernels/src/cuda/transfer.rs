//! Transfers between host and device, and on the device.

use std::ffi::c_void;

use cudarc::driver::{result as driver, sys};

use super::gpu::Gpu;
use super::mat::{Mat, MatMut, Pod};
use super::memory::Buffer;
use super::{Error, Result};

/// Pinned host memory, which the device reads and writes without an intermediate copy.
#[derive(Debug)]
pub struct Pinned<T: Pod> {
    data: *mut T,
    len: usize,
    gpu: Gpu,
}

// SAFETY: it owns its memory.
unsafe impl<T: Pod> Send for Pinned<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Pod> Sync for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// If no such memory can be allocated.
    pub fn new(gpu: Gpu, len: usize) -> Result<Self> {
        let _bound = gpu.bind()?;
        let Some(bytes) = len.checked_mul(size_of::<T>()).map(|bytes| bytes.max(1)) else {
            return Err(Error::Call { call: "cuMemHostAlloc", reason: format!("{len} elements do not fit in memory") });
        };
        // SAFETY: the context is current.
        let data = unsafe { driver::malloc_host(bytes, 0) }.map_err(Error::driver("cuMemHostAlloc"))?.cast::<T>();
        // SAFETY: `bytes` bytes are there, and zero bits are a value of every `Pod`.
        unsafe { data.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { data, len, gpu })
    }
}

impl<T: Pod> std::ops::Deref for Pinned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised numbers are there as long as `self`.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl<T: Pod> std::ops::DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
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

impl Gpu {
    /// Uploads values to new memory. Not allowed during a capture.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn upload<T: Pod>(self, host: &[T]) -> Result<Buffer> {
        let buffer = self.alloc(size_of_val(host))?;
        self.write(&buffer, 0, host)?;
        Ok(buffer)
    }

    /// Uploads values into a buffer, from element `from`.
    ///
    /// # Errors
    /// If a graph is being captured: it would read the host's memory again at every launch.
    ///
    /// # Panics
    /// If they do not fit, or the buffer is on another device.
    pub fn write<T: Pod>(self, buffer: &Buffer, from: usize, host: &[T]) -> Result<()> {
        let to = buffer.range::<T>(self, from, host.len());
        if host.is_empty() {
            return Ok(());
        }
        if self.is_capturing() {
            let reason = "a transfer from the host is not possible while a CUDA graph is captured".to_owned();
            return Err(Error::Call { call: "cuMemcpyHtoDAsync", reason });
        }
        let _bound = self.bind()?;
        // SAFETY: the range is inside the buffer; the driver has read pageable memory when it returns.
        unsafe { driver::memcpy_htod_async(to, host, self.stream()) }.map_err(Error::driver("cuMemcpyHtoDAsync"))
    }

    /// Uploads pinned memory into a buffer without waiting; its owner must not change it before the copy is done.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write_pinned<T: Pod>(self, buffer: &Buffer, host: &Pinned<T>) -> Result<()> {
        assert!(size_of_val::<[T]>(host) <= buffer.bytes(), "values outside a buffer");
        let _bound = self.bind()?;
        let host: &[T] = host;
        // SAFETY: the range is inside the buffer, and pinned memory stays where it is.
        unsafe { driver::memcpy_htod_async(buffer.address(), host, self.stream()) }
            .map_err(Error::driver("cuMemcpyHtoDAsync"))
    }

    /// Downloads `count` values of a buffer from element `from`. Waits for all earlier work.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If they are not all there, or the buffer is on another device.
    pub fn download<T: Pod>(self, buffer: &Buffer, from: usize, count: usize) -> Result<Vec<T>> {
        let at = buffer.range::<T>(self, from, count);
        if count == 0 {
            return Ok(Vec::new());
        }
        let _bound = self.bind()?;
        let mut host: Vec<T> = Vec::with_capacity(count);
        let bytes = count * size_of::<T>();
        // SAFETY: the range is inside the buffer, and there is room for `count` numbers.
        let copied = unsafe { sys::cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), at, bytes, self.stream()) };
        copied.result().map_err(Error::driver("cuMemcpyDtoHAsync"))?;
        self.synchronize()?;
        // SAFETY: the copy has filled them, and every bit pattern is a number.
        unsafe { host.set_len(count) };
        Ok(host)
    }

    /// Copies to pinned memory without waiting; it can be read after an [`Event`](super::Event) recorded next.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If the ranges are not inside their memories.
    pub fn download_later<T: Pod>(self, buffer: &Buffer, to: &Pinned<T>, at: usize, count: usize) -> Result<()> {
        assert!(count * size_of::<T>() <= buffer.bytes() && at + count <= to.len(), "values outside a buffer");
        let _bound = self.bind()?;
        let host = to[at..].as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: both ranges are valid; pinned memory is written by the device, and its owner reads it after an event.
        let copied =
            unsafe { sys::cuMemcpyDtoHAsync_v2(host, buffer.address(), count * size_of::<T>(), self.stream()) };
        copied.result().map_err(Error::driver("cuMemcpyDtoHAsync"))
    }

    /// Writes zeros.
    ///
    /// # Errors
    /// If the driver refuses, or the matrix is on another device.
    pub fn zero(self, m: MatMut<'_>) -> Result<()> {
        self.check_own("zero", &[m.as_mat()])?;
        if m.is_empty() {
            return Ok(());
        }
        let _bound = self.bind()?;
        let (width, pitch) = (m.cols() * m.dtype().bytes(), m.stride() * m.dtype().bytes());
        // SAFETY: the matrix lies inside its buffer.
        let status = unsafe {
            if m.is_contiguous() {
                sys::cuMemsetD8Async(m.address(), 0, m.rows() * width, self.stream())
            } else {
                sys::cuMemsetD2D8Async(m.address(), pitch, 0, width, m.rows(), self.stream())
            }
        };
        status.result().map_err(Error::driver("cuMemsetD8Async"))
    }

    /// Copies a matrix to one of the same shape and dtype.
    ///
    /// # Errors
    /// If shapes or formats differ, or one is on another device.
    pub fn copy(self, from: Mat<'_>, to: MatMut<'_>) -> Result<()> {
        self.check_own("copy", &[from, to.as_mat()])?;
        let check = crate::error::Check("copy");
        check.shape("to", to.shape(), from.shape())?;
        check.that(to.dtype() == from.dtype(), "to", || from.dtype().to_string(), || to.dtype().to_string())?;
        if from.is_empty() {
            return Ok(());
        }
        let _bound = self.bind()?;
        let bytes = from.dtype().bytes();
        if from.is_contiguous() && to.is_contiguous() {
            // SAFETY: both lie inside their buffers.
            return unsafe {
                driver::memcpy_dtod_async(to.address(), from.address(), from.len() * bytes, self.stream())
            }
            .map_err(Error::driver("cuMemcpyDtoDAsync"));
        }
        let copy = sys::CUDA_MEMCPY2D_st {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: from.address(),
            srcArray: std::ptr::null_mut(),
            srcPitch: from.stride() * bytes,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: to.address(),
            dstArray: std::ptr::null_mut(),
            dstPitch: to.stride() * bytes,
            WidthInBytes: from.cols() * bytes,
            Height: from.rows(),
        };
        // SAFETY: both lie inside their buffers.
        unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream()) }.result().map_err(Error::driver("cuMemcpy2DAsync"))
    }

    /// Whether matrices are on this device: its stream orders what is done with them.
    fn check_own(self, op: &'static str, all: &[Mat<'_>]) -> crate::Result<()> {
        let check = crate::error::Check(op);
        all.iter().try_for_each(|m| check.that(m.gpu() == self, "device", || format!("{self:?}"), || format!("{m:?}")))
    }
}
