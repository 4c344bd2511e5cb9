//! Transfers between host and device, and on the device.

use cudarc::driver::{result as driver, sys};

use super::gpu::Gpu;
use super::mat::{Mat, MatMut};
use super::memory::Buffer;
use super::pod::Pod;
use super::{Error, Result};

/// Whether the driver knows the memory: a copy from there reads it after the call has returned.
fn is_pinned<T>(host: &[T]) -> bool {
    let mut kind = 0_u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: this attribute is 32 bits; the driver looks the address up and does not read it.
    let known = unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, host.as_ptr() as u64) };
    known.result().is_ok() && kind == sys::CUmemorytype::CU_MEMORYTYPE_HOST as u32
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
        self.refuse_in_capture("cuMemcpyHtoDAsync")?;
        let _bound = self.bind()?;
        // SAFETY: the range is inside the buffer; the driver has read pageable memory when it returns, and pinned memory is
        // waited for.
        unsafe { driver::memcpy_htod_async(to, host, self.stream()) }.map_err(Error::driver("cuMemcpyHtoDAsync"))?;
        if is_pinned(host) { self.synchronize() } else { Ok(()) }
    }

    /// `count` numbers of a buffer from element `from`. Waits for all work before.
    ///
    /// # Errors
    /// If the device failed, or a graph is being captured.
    ///
    /// # Panics
    /// If they are not all there, or the buffer is on another device.
    pub fn download<T: Pod>(self, buffer: &Buffer, from: usize, count: usize) -> Result<Vec<T>> {
        let at = buffer.range::<T>(self, from, count);
        if count == 0 {
            return Ok(Vec::new());
        }
        self.refuse_in_capture("cuMemcpyDtoHAsync")?;
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

    /// An error while this thread captures a graph: copies from and to the host would be done again at every launch, when
    /// its memory may hold something else.
    pub(super) fn refuse_in_capture(self, call: &'static str) -> Result<()> {
        match self.is_capturing() {
            true => {
                let reason = "memory of the host was needed while a CUDA graph was captured".to_owned();
                Err(Error::Call { call, reason })
            }
            false => Ok(()),
        }
    }

    /// Whether matrices are on this device: its stream orders what is done with them.
    fn check_own(self, op: &'static str, all: &[Mat<'_>]) -> crate::Result<()> {
        let check = crate::error::Check(op);
        all.iter().try_for_each(|m| check.that(m.gpu() == self, "device", || format!("{self:?}"), || format!("{m:?}")))
    }
}
