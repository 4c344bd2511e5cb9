//! Matrices and arrays wherever they are: on the CPU ([`Rows`], slices) or on a GPU ([`Mat`], [`Buffer`]).
//!
//! An operation's `mod.rs` takes views. There devices are told apart, once: its check looks at all views, then those of
//! the CPU go to `cpu.rs` and those of a GPU to `cuda.rs`.

use std::fmt::Debug;

use crate::cuda::{Buffer, Gpu, Mat, MatMut};
use crate::error::{Check, Result};
use crate::segments::{Segments, SegmentsView};
use crate::{DType, Rows, RowsMut, cuda};

/// A matrix to read.
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    /// f32 on the CPU.
    Host(Rows<'a>),
    /// On a GPU.
    Device(Mat<'a>),
}

/// A matrix to write.
#[derive(Debug)]
pub enum ViewMut<'a> {
    /// f32 on the CPU.
    Host(RowsMut<'a>),
    /// On a GPU.
    Device(MatMut<'a>),
}

/// Integers beside the matrices: ids, targets.
#[derive(Debug, Clone, Copy)]
pub enum Array<'a, T> {
    /// On the CPU.
    Host(&'a [T]),
    /// On a GPU.
    Device(&'a Buffer),
}

/// What the arguments of an operation are generic over, so that they are written down once: [`View`] for callers,
/// [`Rows`] in the forms for the CPU (in f64 in the oracles), [`Mat`] in those for a GPU.
pub trait Matrix: Copy + Debug {
    /// A matrix whose elements lie without gaps, so that its shape does not matter: parameters, states.
    type Flat: Copy + Debug;
    /// How sequences are cut.
    type Segments: Copy + Debug + Default;
    /// Integers for every row.
    type Array<T: Copy + Debug + 'static>: Copy + Debug;
}

/// [`Matrix`], to write: [`ViewMut`], [`RowsMut`] or [`MatMut`].
pub trait MatrixMut: Debug {
    /// As [`Matrix::Flat`].
    type Flat: Debug;
}

impl<'a> Matrix for View<'a> {
    type Flat = Self;
    type Segments = SegmentsView<'a>;
    type Array<T: Copy + Debug + 'static> = Array<'a, T>;
}

impl<'a, E: Copy + Debug> Matrix for Rows<'a, E> {
    type Flat = &'a [E];
    type Segments = Segments<'a>;
    type Array<T: Copy + Debug + 'static> = &'a [T];
}

impl<'a> Matrix for Mat<'a> {
    type Flat = Self;
    type Segments = cuda::Segments<'a>;
    type Array<T: Copy + Debug + 'static> = &'a Buffer;
}

impl MatrixMut for ViewMut<'_> {
    type Flat = Self;
}

impl<'a, E: Debug> MatrixMut for RowsMut<'a, E> {
    type Flat = &'a mut [E];
}

impl MatrixMut for MatMut<'_> {
    type Flat = Self;
}

impl<'a> From<Rows<'a>> for View<'a> {
    fn from(rows: Rows<'a>) -> Self {
        Self::Host(rows)
    }
}

impl<'a> From<Mat<'a>> for View<'a> {
    fn from(mat: Mat<'a>) -> Self {
        Self::Device(mat)
    }
}

/// One row.
impl<'a> From<&'a [f32]> for View<'a> {
    fn from(row: &'a [f32]) -> Self {
        Self::Host(Rows::new(row, row.len()))
    }
}

/// One row.
impl<'a> From<&'a Vec<f32>> for View<'a> {
    fn from(row: &'a Vec<f32>) -> Self {
        row.as_slice().into()
    }
}

/// One row.
impl<'a, const N: usize> From<&'a [f32; N]> for View<'a> {
    fn from(row: &'a [f32; N]) -> Self {
        row.as_slice().into()
    }
}

impl<'a> From<RowsMut<'a>> for ViewMut<'a> {
    fn from(rows: RowsMut<'a>) -> Self {
        Self::Host(rows)
    }
}

impl<'a> From<MatMut<'a>> for ViewMut<'a> {
    fn from(mat: MatMut<'a>) -> Self {
        Self::Device(mat)
    }
}

/// One row.
impl<'a> From<&'a mut [f32]> for ViewMut<'a> {
    fn from(row: &'a mut [f32]) -> Self {
        let cols = row.len();
        Self::Host(RowsMut::new(row, cols))
    }
}

/// One row.
impl<'a> From<&'a mut Vec<f32>> for ViewMut<'a> {
    fn from(row: &'a mut Vec<f32>) -> Self {
        row.as_mut_slice().into()
    }
}

/// One row.
impl<'a, const N: usize> From<&'a mut [f32; N]> for ViewMut<'a> {
    fn from(row: &'a mut [f32; N]) -> Self {
        row.as_mut_slice().into()
    }
}

impl<'a, T> From<&'a [T]> for Array<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self::Host(values)
    }
}

impl<'a, T> From<&'a Vec<T>> for Array<'a, T> {
    fn from(values: &'a Vec<T>) -> Self {
        Self::Host(values)
    }
}

impl<'a, T, const N: usize> From<&'a [T; N]> for Array<'a, T> {
    fn from(values: &'a [T; N]) -> Self {
        Self::Host(values)
    }
}

impl<'a, T> From<&'a Buffer> for Array<'a, T> {
    fn from(buffer: &'a Buffer) -> Self {
        Self::Device(buffer)
    }
}

impl<T> Array<'_, T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(buffer) => buffer.bytes() / size_of::<T>(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the check of an operation asks of a matrix.
pub(crate) trait Shaped {
    fn shape(&self) -> (usize, usize);
    fn dtype(&self) -> DType;
    fn is_contiguous(&self) -> bool;
}

impl Shaped for View<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Host(rows) => rows.shape(),
            Self::Device(mat) => mat.shape(),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Host(_) => DType::F32,
            Self::Device(mat) => mat.dtype(),
        }
    }

    fn is_contiguous(&self) -> bool {
        match self {
            Self::Host(rows) => rows.is_contiguous(),
            Self::Device(mat) => mat.is_contiguous(),
        }
    }
}

impl Shaped for ViewMut<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Host(rows) => rows.shape(),
            Self::Device(mat) => mat.shape(),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Host(_) => DType::F32,
            Self::Device(mat) => mat.dtype(),
        }
    }

    fn is_contiguous(&self) -> bool {
        match self {
            Self::Host(rows) => rows.is_contiguous(),
            Self::Device(mat) => mat.is_contiguous(),
        }
    }
}

impl<'a> View<'a> {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        Shaped::shape(self)
    }

    /// Rows `from..from + rows`.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn rows_range(self, from: usize, rows: usize) -> Self {
        match self {
            Self::Host(all) => Self::Host(all.slice(from, rows)),
            Self::Device(mat) => Self::Device(mat.rows_range(from, rows)),
        }
    }

    /// Columns `from..from + cols`.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn columns(self, from: usize, cols: usize) -> Self {
        match self {
            Self::Host(rows) => Self::Host(rows.columns(from, cols)),
            Self::Device(mat) => Self::Device(mat.columns(from, cols)),
        }
    }
}

impl<'a> ViewMut<'a> {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        Shaped::shape(self)
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        match self {
            Self::Host(rows) => ViewMut::Host(rows.reborrow()),
            Self::Device(mat) => ViewMut::Device(mat.reborrow()),
        }
    }

    /// Columns `from..from + cols`.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn columns(self, from: usize, cols: usize) -> Self {
        match self {
            Self::Host(rows) => Self::Host(rows.split_columns(from).1.split_columns(cols).0),
            Self::Device(mat) => Self::Device(mat.columns(from, cols)),
        }
    }

    /// Rows `from..from + rows`.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn rows_range(self, from: usize, rows: usize) -> Self {
        match self {
            Self::Host(all) => Self::Host(all.split_rows(from).1.split_rows(rows).0),
            Self::Device(mat) => Self::Device(mat.rows_range(from, rows)),
        }
    }

    /// The same elements in another shape.
    ///
    /// # Panics
    /// If there are gaps between rows, or it has other elements.
    pub fn reshaped(self, rows: usize, cols: usize) -> Self {
        assert!(self.shape().0 * self.shape().1 == rows * cols, "{:?} as {rows} rows of {cols}", self.shape());
        match self {
            Self::Host(all) => Self::Host(RowsMut::new(all.into_slice(), cols)),
            Self::Device(mat) => Self::Device(mat.reshaped(rows, cols)),
        }
    }

    /// Two matrices: the columns before `at` and those from `at` on.
    ///
    /// # Panics
    /// If `at` is after the last column.
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        match self {
            Self::Host(rows) => {
                let (left, right) = rows.split_columns(at);
                (Self::Host(left), Self::Host(right))
            }
            Self::Device(mat) => {
                let (left, right) = mat.split_columns(at);
                (Self::Device(left), Self::Device(right))
            }
        }
    }
}

/// Checks of views, and what they hold once the device of an operation is known.
impl Check {
    /// The matrix must have this shape.
    pub(crate) fn matrix(self, argument: &'static str, m: &impl Shaped, wanted: (usize, usize)) -> Result<()> {
        self.shape(argument, m.shape(), wanted)
    }

    /// The matrix must be of this format.
    pub(crate) fn dtype(self, argument: &'static str, m: &impl Shaped, wanted: DType) -> Result<()> {
        self.that(m.dtype() == wanted, argument, || wanted.to_string(), || m.dtype().to_string())
    }

    /// The matrix must be `len` f32 elements without gaps, in whatever shape.
    pub(crate) fn flat(self, argument: &'static str, m: &impl Shaped, len: usize) -> Result<()> {
        let (rows, cols) = m.shape();
        self.len(argument, rows * cols, len)?;
        self.dtype(argument, m, DType::F32)?;
        self.that(m.is_contiguous(), argument, || "no gaps between rows".into(), || "gaps".into())
    }

    /// The matrix must be on the CPU.
    pub(crate) fn host<'a>(self, argument: &'static str, view: View<'a>) -> Result<Rows<'a>> {
        match view {
            View::Host(rows) => Ok(rows),
            View::Device(mat) => self.wrong_place(argument, None, Some(mat.gpu())),
        }
    }

    /// [`host`](Self::host), to write.
    pub(crate) fn host_mut<'a>(self, argument: &'static str, view: ViewMut<'a>) -> Result<RowsMut<'a>> {
        match view {
            ViewMut::Host(rows) => Ok(rows),
            ViewMut::Device(mat) => self.wrong_place(argument, None, Some(mat.gpu())),
        }
    }

    /// [`host`](Self::host), of a matrix that was checked to be without gaps.
    pub(crate) fn host_flat<'a>(self, argument: &'static str, view: View<'a>) -> Result<&'a [f32]> {
        Ok(self.host(argument, view)?.as_slice())
    }

    /// [`host_flat`](Self::host_flat), to write.
    pub(crate) fn host_flat_mut<'a>(self, argument: &'static str, view: ViewMut<'a>) -> Result<&'a mut [f32]> {
        Ok(self.host_mut(argument, view)?.into_slice())
    }

    /// The array must be on the CPU.
    pub(crate) fn host_array<'a, T>(self, argument: &'static str, array: Array<'a, T>) -> Result<&'a [T]> {
        match array {
            Array::Host(values) => Ok(values),
            Array::Device(buffer) => self.wrong_place(argument, None, Some(buffer.gpu())),
        }
    }

    /// The matrix must be on this GPU.
    pub(crate) fn device<'a>(self, argument: &'static str, view: View<'a>, gpu: Gpu) -> Result<Mat<'a>> {
        match view {
            View::Device(mat) if mat.gpu() == gpu => Ok(mat),
            View::Device(mat) => self.wrong_place(argument, Some(gpu), Some(mat.gpu())),
            View::Host(_) => self.wrong_place(argument, Some(gpu), None),
        }
    }

    /// [`device`](Self::device), to write.
    pub(crate) fn device_mut<'a>(self, argument: &'static str, view: ViewMut<'a>, gpu: Gpu) -> Result<MatMut<'a>> {
        match view {
            ViewMut::Device(mat) if mat.gpu() == gpu => Ok(mat),
            ViewMut::Device(mat) => self.wrong_place(argument, Some(gpu), Some(mat.gpu())),
            ViewMut::Host(_) => self.wrong_place(argument, Some(gpu), None),
        }
    }

    /// The array must be on this GPU.
    pub(crate) fn device_array<'a, T>(
        self,
        argument: &'static str,
        array: Array<'a, T>,
        gpu: Gpu,
    ) -> Result<&'a Buffer> {
        match array {
            Array::Device(buffer) if buffer.gpu() == gpu => Ok(buffer),
            Array::Device(buffer) => self.wrong_place(argument, Some(gpu), Some(buffer.gpu())),
            Array::Host(_) => self.wrong_place(argument, Some(gpu), None),
        }
    }

    /// None is the CPU.
    pub(crate) fn wrong_place<R>(self, argument: &'static str, wanted: Option<Gpu>, got: Option<Gpu>) -> Result<R> {
        let name = |gpu: Option<Gpu>| gpu.map_or("memory of the CPU".into(), |gpu| format!("memory of {gpu:?}"));
        Err(self.fault(argument, name(wanted), name(got)))
    }
}
