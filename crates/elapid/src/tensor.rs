//! Tensors: numbers with a shape, on a device.

use std::sync::Arc;

use elapid_kernels::{Rows, RowsMut};

/// Where numbers live and operations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor, with the best vector instructions it has.
    #[default]
    Cpu,
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "cpu" | "auto" => Ok(Device::Cpu),
            other => Err(crate::Error::Device {
                name: other.to_owned(),
                reason: "this version runs on `cpu` only (`auto` picks it)".to_owned(),
            }),
        }
    }
}

/// f32 numbers with a shape. Cheap to clone: clones share the numbers.
///
/// The last dimension is contiguous; all others together are rows, `stride` elements apart, so that a column slice of a
/// packed projection (`[x z]`, `[dt B C]`) is a tensor without a copy.
#[derive(Debug, Clone)]
pub struct Tensor {
    data: Arc<Vec<f32>>,
    offset: usize,
    stride: usize,
    shape: Vec<usize>,
}

impl Tensor {
    /// A tensor of the given numbers, row by row.
    ///
    /// # Panics
    /// If the shape's product is not the number of elements.
    pub fn new(data: Vec<f32>, shape: &[usize]) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "{} elements for shape {shape:?}", data.len());
        let stride = shape.last().copied().unwrap_or(1);
        Self { data: Arc::new(data), offset: 0, stride, shape: shape.to_vec() }
    }

    /// All zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::new(vec![0.0; shape.iter().product()], shape)
    }

    /// Length of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the last dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dimensions but the last.
    pub fn row_count(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// The numbers as a matrix of [`row_count`](Self::row_count) rows.
    ///
    /// # Panics
    /// Never: the bounds were checked when the tensor was made.
    pub fn rows(&self) -> Rows<'_> {
        match Rows::strided(&self.data[self.offset..], self.row_count(), self.cols(), self.stride) {
            Ok(rows) => rows,
            Err(error) => unreachable!("a tensor outside its storage: {error}"),
        }
    }

    /// The numbers as one slice.
    ///
    /// # Panics
    /// If rows are apart; see [`contiguous`](Self::contiguous).
    pub fn as_slice(&self) -> &[f32] {
        assert!(self.is_contiguous(), "a column slice has no single slice");
        &self.data[self.offset..self.offset + self.len()]
    }

    /// The numbers to write: in place if no other tensor shares them, else in a copy of their own.
    pub fn make_mut(&mut self) -> &mut [f32] {
        if !self.is_contiguous() || self.offset != 0 || self.len() != self.data.len() {
            *self = self.contiguous_copy();
        }
        Arc::<Vec<f32>>::make_mut(&mut self.data)
    }

    /// The numbers, row by row; moved out if no other tensor shares them.
    pub fn into_vec(self) -> Vec<f32> {
        if self.is_contiguous() && self.offset == 0 && self.len() == self.data.len() {
            Arc::unwrap_or_clone(self.data)
        } else {
            self.rows().to_vec()
        }
    }

    fn is_contiguous(&self) -> bool {
        self.stride == self.cols() || self.row_count() <= 1
    }

    fn contiguous_copy(&self) -> Self {
        Self::new(self.rows().to_vec(), &self.shape)
    }

    /// The same tensor without gaps between its rows.
    pub fn contiguous(&self) -> Self {
        if self.is_contiguous() { self.clone() } else { self.contiguous_copy() }
    }

    /// The same numbers under another shape; only the last dimension of a column slice must stay.
    ///
    /// # Panics
    /// If the number of elements differs, or a column slice would lose its last dimension.
    pub fn reshape(&self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "{:?} as {shape:?}", self.shape);
        let cols = shape.last().copied().unwrap_or(1);
        if cols == self.cols() {
            return Self { shape: shape.to_vec(), ..self.clone() };
        }
        assert!(self.is_contiguous(), "a column slice {:?} as {shape:?}", self.shape);
        Self { shape: shape.to_vec(), stride: cols, ..self.clone() }
    }

    /// Columns `from..from + cols` of every row, without a copy.
    ///
    /// # Panics
    /// If the range is not inside the last dimension.
    pub fn columns(&self, from: usize, cols: usize) -> Self {
        assert!(from + cols <= self.cols(), "columns {from}..{} of {:?}", from + cols, self.shape);
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = cols;
        }
        let offset = (self.offset + from).min(self.data.len());
        Self { offset, shape, ..self.clone() }
    }

    /// Entries `from..from + count` of the first dimension, without a copy.
    ///
    /// # Panics
    /// If the range is not inside the first dimension.
    pub fn narrow(&self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.shape[0], "entries {from}..{} of {:?}", from + count, self.shape);
        let inner: usize = self.shape[1..self.shape.len().max(2) - 1].iter().product();
        let step = if self.shape.len() == 1 { 1 } else { inner * self.stride };
        let mut shape = self.shape.clone();
        shape[0] = count;
        let stride = if self.shape.len() == 1 { count } else { self.stride };
        Self { offset: (self.offset + from * step).min(self.data.len()), shape, stride, ..self.clone() }
    }

    /// Entries of the first dimension in the order of `indices`, copied.
    ///
    /// # Panics
    /// If an index is outside the first dimension.
    pub fn select(&self, indices: &[usize]) -> Self {
        let parts: Vec<Tensor> = indices.iter().map(|&i| self.narrow(i, 1)).collect();
        let mut shape = self.shape.clone();
        shape[0] = indices.len();
        Self::new(parts.iter().flat_map(|part| part.rows().to_vec()).collect(), &shape)
    }

    /// Tensors of equal inner shape, one after another along the first dimension.
    ///
    /// # Panics
    /// If there are none, or their inner shapes differ.
    pub fn concat(parts: &[&Tensor]) -> Self {
        let mut shape = parts[0].shape.clone();
        assert!(parts.iter().all(|part| part.shape[1..] == shape[1..]), "tensors of different inner shapes");
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        Self::new(parts.iter().flat_map(|part| part.rows().to_vec()).collect(), &shape)
    }

    /// A tensor of this shape that keeps no numbers alive: only its shape may be asked for.
    pub(crate) fn shape_only(&self) -> Self {
        Self { data: Arc::default(), offset: 0, stride: self.stride, shape: self.shape.clone() }
    }

    /// A new tensor that `write` fills; it starts as zeros.
    pub fn filled<E>(shape: &[usize], write: impl FnOnce(RowsMut<'_>) -> Result<(), E>) -> Result<Self, E> {
        let mut data = vec![0.0; shape.iter().product()];
        write(RowsMut::new(&mut data, shape.last().copied().unwrap_or(1)))?;
        Ok(Self::new(data, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Tensor {
        Tensor::new((0..shape.iter().product()).map(|i: usize| i as f32).collect(), shape)
    }

    #[test]
    fn columns_of_a_packed_projection_are_views() {
        let packed = counted(&[2, 3, 5]);
        let view = packed.columns(1, 2);
        assert_eq!(view.shape(), [2, 3, 2]);
        assert_eq!(view.rows().row(4), [21.0, 22.0]);
        assert_eq!(view.columns(1, 1).contiguous().as_slice(), [2.0, 7.0, 12.0, 17.0, 22.0, 27.0]);
        assert_eq!(view.reshape(&[6, 2]).rows().row(5), [26.0, 27.0]);
        assert_eq!(packed.columns(5, 0).len(), 0);
    }

    #[test]
    fn entries_of_the_first_dimension() {
        let x = counted(&[4, 2, 3]);
        assert_eq!(x.narrow(1, 2).rows().row(0), [6.0, 7.0, 8.0]);
        assert_eq!(x.select(&[3, 0]).as_slice()[..3], [18.0, 19.0, 20.0]);
        assert_eq!(Tensor::concat(&[&x.narrow(0, 1), &x.narrow(1, 3)]).as_slice(), x.as_slice());
        assert_eq!(x.columns(1, 1).select(&[1]).as_slice(), [7.0, 10.0]);
        assert_eq!(counted(&[5]).narrow(2, 2).as_slice(), [2.0, 3.0]);
        assert_eq!(counted(&[5]).select(&[4, 4]).as_slice(), [4.0, 4.0]);
        assert_eq!(counted(&[0, 3]).narrow(0, 0).len(), 0);
    }

    #[test]
    fn writing_leaves_other_clones_alone() {
        let mut x = counted(&[2, 2]);
        let before = x.clone();
        x.make_mut()[0] = 9.0;
        assert_eq!(before.as_slice()[0], 0.0);
        assert_eq!(x.as_slice()[0], 9.0);
    }
}
