//! Matrices on a device: addresses with a shape, the arguments of operations.

use std::fmt;

use super::{Buffer, Gpu, Held};
use crate::DType;

/// A matrix on a device, rows `stride` elements apart. Every element lies inside its buffer, and rows do not overlap:
/// the constructors check it, and nothing can change it later.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    buffer: &'a Buffer,
    /// Bytes of the buffer before the first element.
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
    dtype: DType,
}

/// A matrix on a device, to write.
pub struct MatMut<'a>(Mat<'a>);

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

impl fmt::Debug for Mat<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, cols, stride, dtype, .. } = self;
        write!(f, "{rows} rows of {cols} {dtype}, {stride} apart, on {:?}", self.gpu())
    }
}

impl fmt::Debug for MatMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The elements from the first to the last of a matrix; none if their number is too large to count.
fn span((rows, cols): (usize, usize), stride: usize) -> Option<usize> {
    match (rows, cols) {
        (0, _) | (_, 0) => Some(0),
        (rows, cols) => (rows - 1).checked_mul(stride)?.checked_add(cols),
    }
}

/// Whether a matrix lies inside `bytes` bytes from byte `offset` on, and its rows do not overlap.
fn fits(bytes: usize, offset: usize, shape: (usize, usize), stride: usize, dtype: DType) -> bool {
    let end = span(shape, stride).and_then(|count| count.checked_mul(dtype.bytes())?.checked_add(offset));
    let apart = shape.0 <= 1 || stride >= shape.1;
    apart && i64::try_from(stride).is_ok() && end.is_some_and(|end| end <= bytes)
}

impl<'a> Mat<'a> {
    /// A matrix over memory from byte `offset`.
    ///
    /// # Panics
    /// If it does not lie inside the buffer, or its rows overlap.
    pub fn new(buffer: &'a Buffer, offset: usize, (rows, cols): (usize, usize), stride: usize, dtype: DType) -> Self {
        let inside = fits(buffer.bytes(), offset, (rows, cols), stride, dtype);
        assert!(inside, "{rows} rows of {cols} {dtype}, {stride} apart, from byte {offset} of {buffer:?}");
        Self { buffer, offset, rows, cols, stride, dtype }
    }

    /// The device that it is on.
    pub fn gpu(&self) -> Gpu {
        self.buffer.gpu()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from a row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Format of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        // No overflow: rows lie one after another inside a buffer, or there are none.
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
        self.buffer.address() + self.offset as u64
    }

    /// As a kernel argument.
    pub fn raw(&self) -> RawMat {
        RawMat { data: self.address(), stride: self.stride as i64 }
    }

    /// Columns `from..from + cols`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn columns(self, from: usize, cols: usize) -> Self {
        assert!(from <= self.cols && cols <= self.cols - from, "{cols} columns from {from} on of {}", self.cols);
        let skipped = if self.rows == 0 || cols == 0 { 0 } else { from };
        Self { offset: self.offset + skipped * self.dtype.bytes(), cols, ..self }
    }

    /// Rows `from..from + rows`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn rows_range(self, from: usize, rows: usize) -> Self {
        assert!(from <= self.rows && rows <= self.rows - from, "{rows} rows from {from} on of {}", self.rows);
        let skipped = if rows == 0 || self.cols == 0 { 0 } else { from * self.stride };
        Self { offset: self.offset + skipped * self.dtype.bytes(), rows, ..self }
    }

    /// The same elements as one row.
    ///
    /// # Panics
    /// If there are gaps between rows.
    pub(crate) fn flat(self) -> Self {
        assert!(self.is_contiguous(), "{self:?} as one row");
        let len = self.len();
        Self { rows: 1, cols: len, stride: len, ..self }
    }

    /// Whether every row starts at a multiple of 16 bytes: eight bf16 or four f32 can be read at once.
    pub(crate) fn is_aligned(&self) -> bool {
        self.starts_rows_at(16)
    }

    /// Whether four elements of a row can be read at once.
    pub(crate) fn reads_four(&self) -> bool {
        self.starts_rows_at(4 * self.dtype.bytes())
    }

    /// Whether every row starts at a multiple of this many bytes.
    fn starts_rows_at(&self, bytes: usize) -> bool {
        let apart = if self.rows > 1 { self.stride * self.dtype.bytes() } else { 0 };
        self.address().is_multiple_of(bytes as u64) && apart.is_multiple_of(bytes)
    }

    /// The memory that it lies in, to keep it beyond the borrow.
    pub(crate) fn memory(&self) -> Held {
        self.buffer.hold()
    }

    /// The same memory to write: for operations that work in place. The stream orders reads and writes.
    pub(crate) fn into_mut(self) -> MatMut<'a> {
        MatMut(self)
    }
}

impl<'a> MatMut<'a> {
    /// A matrix over memory from byte `offset`.
    ///
    /// # Panics
    /// If it does not lie inside the buffer, or its rows overlap.
    pub fn new(buffer: &'a Buffer, offset: usize, shape: (usize, usize), stride: usize, dtype: DType) -> Self {
        Self(Mat::new(buffer, offset, shape, stride, dtype))
    }

    /// The same matrix to read.
    pub fn as_mat(&self) -> Mat<'_> {
        self.0
    }

    /// The same matrix, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut(self.0)
    }

    /// The device that it is on.
    pub fn gpu(&self) -> Gpu {
        self.0.gpu()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.0.cols
    }

    /// Elements from a row to the next.
    pub fn stride(&self) -> usize {
        self.0.stride
    }

    /// Format of the elements.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there are no gaps between rows.
    pub fn is_contiguous(&self) -> bool {
        self.0.is_contiguous()
    }

    /// Address of the first element.
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    /// As a kernel argument.
    pub fn raw(&self) -> RawMat {
        self.0.raw()
    }

    /// Columns `from..from + cols`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn columns(self, from: usize, cols: usize) -> Self {
        Self(self.0.columns(from, cols))
    }

    /// Rows `from..from + rows`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn rows_range(self, from: usize, rows: usize) -> Self {
        Self(self.0.rows_range(from, rows))
    }

    /// Two matrices: the columns before `at` and those from `at` on.
    ///
    /// # Panics
    /// If `at` is after the last column.
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        let Self(m) = self;
        (Self(m.columns(0, at)), Self(m.columns(at, m.cols - at)))
    }

    /// The same elements in another shape.
    ///
    /// # Panics
    /// If there are gaps between rows, or it has other elements.
    pub(crate) fn reshaped(self, rows: usize, cols: usize) -> Self {
        assert!(self.0.is_contiguous() && self.0.len() == rows * cols, "{self:?} as {rows} rows of {cols}");
        MatMut(Mat { rows, cols, stride: cols, ..self.0 })
    }

    /// [`Mat::flat`], to write.
    pub(crate) fn flat(self) -> Self {
        Self(self.0.flat())
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
    /// The device of either; none if both are absent.
    pub(crate) fn gpu(&self) -> Option<Gpu> {
        self.lengths.or(self.resets).map(Buffer::gpu)
    }

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
        let positions = check.product("b l", &[b, l])?;
        if let (Some(wanted), Some(resets)) = (self.gpu(), self.resets) {
            let got = resets.gpu();
            check.that(wanted == got, "resets", || format!("memory of {wanted:?}"), || format!("memory of {got:?}"))?;
        }
        if let Some(lengths) = self.lengths {
            check.len("lengths", lengths.bytes() / 4, b)?;
        }
        self.resets.map_or(Ok(()), |resets| check.len("resets", resets.bytes(), positions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums and products that would wrap are refused, as are matrices that end outside and rows that overlap.
    #[test]
    fn a_matrix_lies_inside_its_buffer() {
        let f32s = |bytes, offset, shape, stride| fits(bytes, offset, shape, stride, DType::F32);
        assert!(f32s(48, 0, (3, 4), 4) && f32s(48, 8, (2, 3), 7) && f32s(0, 0, (0, 5), 5) && f32s(8, 8, (5, 0), 0));
        assert!(!f32s(48, 4, (3, 4), 4), "it ends behind the buffer");
        assert!(!f32s(48, 0, (3, 4), 3), "its rows overlap");
        assert!(f32s(48, 0, (1, 4), 3), "a single row may have any stride");
        for (offset, shape, stride) in [
            (0, (2, 1), usize::MAX),
            (0, (3, 4), 1 << 63),
            (0, (1 << 33, 4), 1 << 33),
            (0, (1, 1 << 62), 1 << 62),
            (usize::MAX, (1, 1), 1),
            (usize::MAX - 3, (1, 1), 1),
        ] {
            assert!(!f32s(1 << 30, offset, shape, stride), "{offset} {shape:?} {stride}");
        }
    }
}
