//! A page on a GPU.

use crate::DType;
use crate::cuda::elementwise::convert;
use crate::cuda::{Buffer, Gpu, Mat, MatMut, Result};
use crate::error::product;

/// Positions of a page.
pub const PAGE: usize = 64;

/// The shape of a cache's pages: `[groups][64][dim]`, a group for each head of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Heads of keys or values.
    pub groups: usize,
    /// Columns of each.
    pub dim: usize,
    /// Format of the elements.
    pub dtype: DType,
}

impl Shape {
    /// Elements of a page.
    pub(super) fn elements(&self) -> usize {
        product(&[self.groups, PAGE, self.dim])
    }
}

/// [`PAGE`] positions of a cache on a GPU.
#[derive(Debug)]
pub struct Page {
    buffer: Buffer,
    shape: Shape,
}

impl Page {
    /// A page that is not initialised.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(gpu: Gpu, shape: Shape) -> Result<Self> {
        let buffer = gpu.alloc(product(&[shape.elements(), shape.dtype.bytes()]))?;
        Ok(Self { buffer, shape })
    }

    /// The page of these values, `[groups][64][dim]`.
    ///
    /// # Errors
    /// If the device has too little memory.
    ///
    /// # Panics
    /// If there are too few.
    pub fn upload(gpu: Gpu, shape: Shape, values: &[f32]) -> Result<Self> {
        let exact = Shape { dtype: DType::F32, ..shape };
        let page = Self { buffer: gpu.upload(&values[..exact.elements()])?, shape: exact };
        if shape.dtype == DType::F32 { Ok(page) } else { page.converted(shape.dtype) }
    }

    /// Its values, `[groups][64][dim]`; waits for the device.
    ///
    /// # Errors
    /// If the device failed.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match self.shape.dtype {
            DType::F32 => self.gpu().download(&self.buffer, 0, self.shape.elements()),
            DType::Bf16 => self.converted(DType::F32)?.to_vec(),
        }
    }

    /// A copy in another format.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn converted(&self, dtype: DType) -> Result<Self> {
        let copy = Self::new(self.gpu(), Shape { dtype, ..self.shape })?;
        match dtype == self.shape.dtype {
            true => self.gpu().copy(self.mat(), copy.mat_mut())?,
            false => convert(&self.gpu(), self.mat(), copy.mat_mut())?,
        }
        Ok(copy)
    }

    fn mat(&self) -> Mat<'_> {
        self.buffer.mat(1, self.shape.elements(), self.shape.dtype)
    }

    fn mat_mut(&self) -> MatMut<'_> {
        self.buffer.mat_mut(1, self.shape.elements(), self.shape.dtype)
    }

    /// Its device.
    pub fn gpu(&self) -> Gpu {
        self.buffer.gpu()
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.buffer.address()
    }
}
