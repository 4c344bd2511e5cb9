//! Matrices on a device: addresses with a shape, the arguments of operations.

use std::marker::PhantomData;

use super::memory::Buffer;
use crate::DType;

/// Plain values with the same representation on the host and the device.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Pod: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers.
unsafe impl Pod for f32 {}
// SAFETY: plain numbers.
unsafe impl Pod for f64 {}
// SAFETY: plain numbers.
unsafe impl Pod for u8 {}
// SAFETY: plain numbers.
unsafe impl Pod for u16 {}
// SAFETY: plain numbers.
unsafe impl Pod for i32 {}
// SAFETY: plain numbers.
unsafe impl Pod for u32 {}
// SAFETY: plain numbers.
unsafe impl Pod for u64 {}

/// A matrix on a device, rows `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a> {
    address: u64,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
    /// Dtype of the values.
    pub dtype: DType,
    memory: PhantomData<&'a Buffer>,
}

/// A matrix on a device, to write.
#[derive(Debug)]
pub struct MatMut<'a> {
    address: u64,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from a row to the next.
    pub stride: usize,
    /// Dtype of the values.
    pub dtype: DType,
    memory: PhantomData<&'a Buffer>,
}

impl Buffer {
    /// As a contiguous matrix, from the first byte.
    ///
    /// # Panics
    /// If it is too small.
    pub fn mat(&self, rows: usize, cols: usize, dtype: DType) -> Mat<'_> {
        Mat::new(self, 0, (rows, cols), cols, dtype)
    }

    /// [`mat`](Self::mat), to write: the stream orders accesses.
    ///
    /// # Panics
    /// If it is too small.
    pub fn mat_mut(&self, rows: usize, cols: usize, dtype: DType) -> MatMut<'_> {
        MatMut::new(self, 0, (rows, cols), cols, dtype)
    }
}

/// A matrix as a kernel argument; `Mat<T>` of `common.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct RawMat {
    /// Address of the first element; 0 for an absent matrix.
    pub data: u64,
    /// Elements from a row to the next.
    pub stride: i64,
}

impl RawMat {
    /// An absent matrix.
    pub const NULL: Self = Self { data: 0, stride: 0 };
}

impl<'a> Mat<'a> {
    /// A matrix over memory from byte `offset`.
    ///
    /// # Panics
    /// If it is not inside the buffer.
    pub fn new(buffer: &'a Buffer, offset: usize, (rows, cols): (usize, usize), stride: usize, dtype: DType) -> Self {
        let last = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(offset + last * dtype.bytes() <= buffer.bytes(), "a matrix outside its buffer");
        Self { address: buffer.address() + offset as u64, rows, cols, stride, dtype, memory: PhantomData }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there are no gaps between rows.
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }

    /// Address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// As a kernel argument.
    pub fn raw(&self) -> RawMat {
        RawMat { data: self.address, stride: self.stride as i64 }
    }

    /// Columns `from..from + cols`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn columns(self, from: usize, cols: usize) -> Self {
        assert!(from + cols <= self.cols, "columns {from}..{} of {}", from + cols, self.cols);
        Self { address: self.address + (from * self.dtype.bytes()) as u64, cols, ..self }
    }

    /// Rows `from..from + rows`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn rows_range(self, from: usize, rows: usize) -> Self {
        assert!(from + rows <= self.rows, "rows {from}..{} of {}", from + rows, self.rows);
        Self { address: self.address + (from * self.stride * self.dtype.bytes()) as u64, rows, ..self }
    }

    /// The same values as one row; the matrix must be contiguous.
    pub(crate) fn flat(self) -> Self {
        let len = self.len();
        Self { rows: 1, cols: len, stride: len, ..self }
    }

    /// Whether every row starts at a multiple of 16 bytes: eight bf16 or four f32 can be read at once.
    pub(crate) fn is_aligned(&self) -> bool {
        self.starts_rows_at(16)
    }

    /// Whether four values of a row can be read at once.
    pub(crate) fn reads_four(&self) -> bool {
        self.starts_rows_at(4 * self.dtype.bytes())
    }

    /// Whether every row starts at a multiple of this many bytes.
    fn starts_rows_at(&self, bytes: usize) -> bool {
        let apart = if self.rows > 1 { self.stride * self.dtype.bytes() } else { 0 };
        self.address.is_multiple_of(bytes as u64) && apart.is_multiple_of(bytes)
    }

    /// The same memory to write, for in-place operations. The stream orders reads and writes.
    pub(crate) fn into_mut(self) -> MatMut<'a> {
        let Self { address, rows, cols, stride, dtype, memory } = self;
        MatMut { address, rows, cols, stride, dtype, memory }
    }
}

impl<'a> MatMut<'a> {
    /// A matrix over memory from byte `offset`.
    ///
    /// # Panics
    /// If it is not inside the buffer.
    pub fn new(buffer: &'a Buffer, offset: usize, shape: (usize, usize), stride: usize, dtype: DType) -> Self {
        Mat::new(buffer, offset, shape, stride, dtype).into_mut()
    }

    /// The same matrix to read.
    pub fn as_mat(&self) -> Mat<'_> {
        let &Self { address, rows, cols, stride, dtype, memory } = self;
        Mat { address, rows, cols, stride, dtype, memory }
    }

    /// The same matrix, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        self.as_mat().into_mut()
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there are no gaps between rows.
    pub fn is_contiguous(&self) -> bool {
        self.as_mat().is_contiguous()
    }

    /// Address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// As a kernel argument.
    pub fn raw(&self) -> RawMat {
        self.as_mat().raw()
    }

    /// Columns `from..from + cols`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn columns(self, from: usize, cols: usize) -> Self {
        let Self { address, rows, cols: all, stride, dtype, memory } = self;
        Mat { address, rows, cols: all, stride, dtype, memory }.columns(from, cols).into_mut()
    }

    /// Rows `from..from + rows`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn rows_range(self, from: usize, rows: usize) -> Self {
        let Self { address, rows: all, cols, stride, dtype, memory } = self;
        Mat { address, rows: all, cols, stride, dtype, memory }.rows_range(from, rows).into_mut()
    }
}

/// Where sequences of a batch end and where documents begin, on a device: see [`crate::Segments`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Segments<'a> {
    /// `[b]`, u32.
    pub lengths: Option<&'a Buffer>,
    /// `[b l]`, u8.
    pub resets: Option<&'a Buffer>,
}

impl Segments<'_> {
    /// Address of the lengths; 0 if absent.
    pub fn lengths_address(&self) -> u64 {
        self.lengths.map_or(0, Buffer::address)
    }

    /// Address of the resets; 0 if absent.
    pub fn resets_address(&self) -> u64 {
        self.resets.map_or(0, Buffer::address)
    }

    /// Checks the sizes against a batch of `b` rows of `l` positions. Lengths above `l` count as `l`.
    pub(crate) fn check(&self, op: &'static str, b: usize, l: usize) -> crate::Result<()> {
        let check = crate::error::Check(op);
        if let Some(lengths) = self.lengths {
            check.len("lengths", lengths.bytes() / 4, b)?;
        }
        self.resets.map_or(Ok(()), |resets| check.len("resets", resets.bytes(), b * l))
    }
}
