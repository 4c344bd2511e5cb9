//! Tensors: values with a shape, on a device.

use std::sync::Arc;

use elapid_kernels::cuda::{self, Buffer, Gpu, Mat, MatMut};
use elapid_kernels::packed::Packed;
use elapid_kernels::reuse::{List, Values};
use elapid_kernels::{DType, Rows, RowsMut, View, ViewMut};

use crate::{Error, Result};

/// The device that holds values and runs operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The CPU, with its best vector instructions.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda(Gpu),
}

impl Device {
    /// The GPU, if it is one.
    pub fn gpu(self) -> Option<Gpu> {
        match self {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(gpu),
        }
    }

    /// Whether a tensor whose clones are alive is copied when it is written, as on the CPU. On a GPU clones see what is
    /// written, so that what is written later must not be given away twice.
    pub(crate) fn copies_on_write(self) -> bool {
        self == Device::Cpu
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(gpu) => write!(f, "cuda:{}", gpu.ordinal()),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda`, `cuda:1`, or `auto`: the first GPU if it can be used, else the CPU.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unusable = |reason: String| Error::Device { name: name.to_owned(), reason };
        let open = |ordinal: usize| match Gpu::open(ordinal) {
            Ok(gpu) => Ok(Device::Cuda(gpu)),
            Err(error) => Err(unusable(format!("{error}. `elapid doctor` shows what was found"))),
        };
        match name.split_once(':') {
            None if name == "cpu" => Ok(Device::Cpu),
            None if name == "auto" => Ok(Gpu::open(0).map_or(Device::Cpu, Device::Cuda)),
            None if name == "cuda" => open(0),
            Some(("cuda", ordinal)) => match ordinal.parse() {
                Ok(ordinal) => open(ordinal),
                Err(_) => Err(unusable(format!("`{ordinal}` is not the number of a GPU; wanted cuda:0, cuda:1, …"))),
            },
            _ => Err(unusable("wanted cpu, cuda, cuda:N or auto".to_owned())),
        }
    }
}

/// Values with a shape. Cheap to clone: clones share the values.
///
/// The last dimension is contiguous; all others together are rows, `stride` elements apart, so a column slice of a packed
/// projection (`[x z]`, `[dt B C]`) is a tensor without a copy. On the CPU values are f32, on a GPU f32 or bf16. Methods
/// that do not mention devices are for the CPU, and panic for a tensor on a GPU.
#[derive(Debug, Clone)]
pub struct Tensor {
    data: Storage,
    /// Offset of the first element.
    offset: usize,
    stride: usize,
    shape: List<usize>,
}

#[derive(Debug, Clone)]
enum Storage {
    Cpu(Values),
    Cuda(Arc<Buffer>, DType),
    /// A weight on the CPU that is stored in another form than f32.
    Packed(Arc<Packed>),
    /// No values: what remains of an output of which only the shape is needed.
    Nothing(Device, DType),
}

impl Tensor {
    /// A tensor of the given values, row by row.
    ///
    /// # Panics
    /// If the shape's product is not the number of elements.
    pub fn new(data: Vec<f32>, shape: &[usize]) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>(), "{} elements for shape {shape:?}", data.len());
        Self::of_values(data.into(), shape)
    }

    fn of_values(values: Values, shape: &[usize]) -> Self {
        Self::over(Storage::Cpu(values), 0, shape)
    }

    /// A weight `[n k]` on the CPU in a stored form. Products, losses and looked-up rows read it as it is; other operations
    /// do not take it.
    pub fn of_packed(weight: Packed) -> Self {
        let (n, k) = weight.shape();
        Self::over(Storage::Packed(Arc::new(weight)), 0, &[n, k])
    }

    /// The weight that was given to [`of_packed`](Self::of_packed).
    pub fn packed(&self) -> Option<&Packed> {
        match &self.data {
            Storage::Packed(weight) if self.shape[..] == [weight.shape().0, weight.shape().1] => Some(weight),
            _ => None,
        }
    }

    fn over(data: Storage, offset: usize, shape: &[usize]) -> Self {
        Self { data, offset, stride: shape.last().copied().unwrap_or(1), shape: shape.iter().copied().collect() }
    }

    /// A tensor without values: only a shape.
    pub(crate) fn outline(shape: &[usize]) -> Self {
        Self::over(Storage::Nothing(Device::Cpu, DType::F32), 0, shape)
    }

    /// All zeros.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn zeros(shape: &[usize]) -> Result<Self> {
        Ok(Self::of_values(Values::zeros(elements(shape)?)?, shape))
    }

    /// All zeros, on a device.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn zeros_on(device: Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        match device {
            Device::Cpu => Self::zeros(shape),
            Device::Cuda(gpu) => {
                let mut zeros = Self::uninit(gpu, dtype, shape)?;
                gpu.zero(zeros.mat_mut())?;
                Ok(zeros)
            }
        }
    }

    /// Memory for what an operation writes: zeros on the CPU, which is f32, and not initialised on a GPU.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub(crate) fn output(device: Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        match device {
            Device::Cpu => Self::zeros(shape),
            Device::Cuda(gpu) => Self::uninit(gpu, dtype, shape),
        }
    }

    /// As operations read it: a matrix of [`row_count`](Self::row_count) rows.
    pub(crate) fn view(&self) -> View<'_> {
        match self.device() {
            Device::Cpu => self.rows().into(),
            Device::Cuda(_) => self.mat().into(),
        }
    }

    /// As operations read it where its shape does not matter: one row.
    ///
    /// # Panics
    /// If rows are apart.
    pub(crate) fn view_flat(&self) -> View<'_> {
        match self.device() {
            Device::Cpu => self.as_slice().into(),
            Device::Cuda(_) => self.flat().into(),
        }
    }

    /// As operations write it. On the CPU it is copied first if a clone shares its memory, on a GPU clones see what is
    /// written.
    pub(crate) fn view_mut(&mut self) -> ViewMut<'_> {
        if self.device() != Device::Cpu {
            return self.mat_mut().into();
        }
        let (rows, cols) = (self.row_count(), self.cols());
        match RowsMut::strided(self.make_mut(), rows, cols, cols) {
            Ok(rows) => rows.into(),
            Err(error) => unreachable!("a tensor outside its storage: {error}"),
        }
    }

    /// Memory of a GPU that is not initialised.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn uninit(gpu: Gpu, dtype: DType, shape: &[usize]) -> Result<Self> {
        let bytes = elements(shape)?.checked_mul(dtype.bytes()).ok_or_else(|| too_many(shape))?;
        let buffer = gpu.alloc(bytes)?;
        Ok(Self::over(Storage::Cuda(Arc::new(buffer), dtype), 0, shape))
    }

    /// A part of a GPU's memory, from element `offset`, rows without gaps.
    ///
    /// # Panics
    /// If it is not inside the buffer.
    pub fn part_of(buffer: Arc<Buffer>, offset: usize, dtype: DType, shape: &[usize]) -> Self {
        let end = (offset + shape.iter().product::<usize>()) * dtype.bytes();
        assert!(end <= buffer.bytes(), "a tensor outside its buffer");
        Self::over(Storage::Cuda(buffer, dtype), offset, shape)
    }

    /// The device of the values.
    pub fn device(&self) -> Device {
        match &self.data {
            Storage::Cpu(_) | Storage::Packed(_) => Device::Cpu,
            Storage::Cuda(buffer, _) => Device::Cuda(buffer.gpu()),
            Storage::Nothing(device, _) => *device,
        }
    }

    /// The GPU that holds the values.
    pub fn gpu(&self) -> Option<Gpu> {
        self.device().gpu()
    }

    /// Their dtype.
    pub fn dtype(&self) -> DType {
        match &self.data {
            Storage::Cpu(_) | Storage::Packed(_) => DType::F32,
            Storage::Cuda(_, dtype) | Storage::Nothing(_, dtype) => *dtype,
        }
    }

    /// The same values on a device and in a dtype; f32 on the CPU. Does not copy if nothing changes.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn to(&self, device: Device, dtype: DType) -> Result<Self> {
        match (self.device(), device) {
            (Device::Cpu, Device::Cpu) => Ok(self.clone()),
            (Device::Cuda(from), Device::Cuda(to)) if from == to => {
                if self.dtype() == dtype {
                    return Ok(self.clone());
                }
                let mut converted = Self::uninit(to, dtype, &self.shape)?;
                cuda::elementwise::convert(&to, self.mat(), converted.mat_mut())?;
                Ok(converted)
            }
            (_, Device::Cpu) => Ok(Self::new(self.to_vec()?, &self.shape)),
            (_, Device::Cuda(gpu)) => {
                let buffer = gpu.upload(&self.to_vec()?)?;
                Self::over(Storage::Cuda(Arc::new(buffer), DType::F32), 0, &self.shape).to(device, dtype)
            }
        }
    }

    /// The values on the CPU, row by row. Waits for the device.
    ///
    /// # Errors
    /// If the device failed.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match &self.data {
            Storage::Cpu(_) => Ok(self.rows().to_vec()),
            Storage::Packed(weight) => Ok(weight.to_vec()?),
            Storage::Cuda(buffer, DType::F32) if self.is_contiguous() => {
                Ok(buffer.gpu().download(buffer, self.offset, self.len())?)
            }
            Storage::Cuda(buffer, _) => {
                let gpu = buffer.gpu();
                let mut copy = Self::uninit(gpu, DType::F32, &self.shape)?;
                cuda::elementwise::convert(&gpu, self.mat(), copy.mat_mut())?;
                copy.to_vec()
            }
            Storage::Nothing(..) => Err(Error::Argument("a tensor without values was read".into())),
        }
    }

    /// As an input of operations on a GPU.
    ///
    /// # Panics
    /// If it is not on a GPU.
    pub fn mat(&self) -> Mat<'_> {
        let (buffer, dtype) = self.buffer();
        Mat::new(buffer, self.offset * dtype.bytes(), (self.row_count(), self.cols()), self.stride, dtype)
    }

    /// As an output of operations on a GPU; clones see what is written.
    ///
    /// # Panics
    /// If it is not on a GPU.
    pub fn mat_mut(&mut self) -> MatMut<'_> {
        let (buffer, dtype) = self.buffer();
        MatMut::new(buffer, self.offset * dtype.bytes(), (self.row_count(), self.cols()), self.stride, dtype)
    }

    /// As one row: for parameters of one dimension, and matrices whose rows do not matter.
    ///
    /// # Panics
    /// If it is not on a GPU, or not contiguous.
    pub fn flat(&self) -> Mat<'_> {
        assert!(self.is_contiguous(), "a column slice is not a single row");
        let (buffer, dtype) = self.buffer();
        Mat::new(buffer, self.offset * dtype.bytes(), (1, self.len()), self.len(), dtype)
    }

    /// As `rows` rows, whatever the shape.
    ///
    /// # Panics
    /// If it is not on a GPU, is not contiguous, or the number of elements is not divisible.
    pub fn flat_rows(&self, rows: usize) -> Mat<'_> {
        assert!(self.is_contiguous() && self.len().is_multiple_of(rows.max(1)), "{:?} as {rows} rows", self.shape);
        let (buffer, dtype) = self.buffer();
        let cols = self.len() / rows.max(1);
        Mat::new(buffer, self.offset * dtype.bytes(), (rows, cols), cols, dtype)
    }

    /// The memory and the dtype.
    ///
    /// # Panics
    /// If it is not on a GPU.
    pub fn buffer(&self) -> (&Arc<Buffer>, DType) {
        match &self.data {
            Storage::Cuda(buffer, dtype) => (buffer, *dtype),
            _ => panic!("a tensor on {} where one on a GPU is needed", self.device()),
        }
    }

    fn cpu(&self) -> &Values {
        match &self.data {
            Storage::Cpu(data) => data,
            _ => panic!("a tensor on {} where one on the CPU is needed", self.device()),
        }
    }

    /// Length of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Storage::Packed(weight) => weight.bytes().len(),
            _ => self.len() * self.dtype().bytes(),
        }
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

    /// The values as a matrix of [`row_count`](Self::row_count) rows.
    ///
    /// # Panics
    /// Never: the bounds were checked when the tensor was made.
    pub fn rows(&self) -> Rows<'_> {
        match Rows::strided(&self.cpu()[self.offset..], self.row_count(), self.cols(), self.stride) {
            Ok(rows) => rows,
            Err(error) => unreachable!("a tensor outside its storage: {error}"),
        }
    }

    /// The values as one slice.
    ///
    /// # Panics
    /// If it is not contiguous; see [`contiguous`](Self::contiguous).
    pub fn as_slice(&self) -> &[f32] {
        assert!(self.is_contiguous(), "a column slice is not contiguous");
        &self.cpu()[self.offset..self.offset + self.len()]
    }

    /// The values, mutable: in place if no other tensor shares them, else in a copy.
    pub fn make_mut(&mut self) -> &mut [f32] {
        if !self.is_contiguous() || self.offset != 0 || self.len() != self.cpu().len() {
            *self = self.contiguous_copy();
        }
        match &mut self.data {
            Storage::Cpu(data) => data.make_mut(),
            _ => unreachable!("its values were just read"),
        }
    }

    /// The values, row by row; moved out if no other tensor shares them.
    pub fn into_vec(self) -> Vec<f32> {
        match self.data {
            Storage::Cpu(data) if self.offset == 0 && self.shape.iter().product::<usize>() == data.len() => {
                data.into_vec()
            }
            _ => self.rows().to_vec(),
        }
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        self.stride == self.cols() || self.row_count() <= 1
    }

    fn contiguous_copy(&self) -> Self {
        Self::new(self.rows().to_vec(), &self.shape)
    }

    /// The same tensor without gaps between its rows.
    pub fn contiguous(&self) -> Self {
        if self.is_contiguous() { self.clone() } else { self.contiguous_copy() }
    }

    /// The same values with another shape; a column slice must keep its last dimension.
    ///
    /// # Panics
    /// If the number of elements differs, or a column slice would lose its last dimension.
    pub fn reshape(&self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "{:?} as {shape:?}", self.shape);
        let cols = shape.last().copied().unwrap_or(1);
        if cols == self.cols() {
            return Self { shape: shape.iter().copied().collect(), ..self.clone() };
        }
        assert!(self.is_contiguous(), "a column slice {:?} as {shape:?}", self.shape);
        Self { shape: shape.iter().copied().collect(), stride: cols, ..self.clone() }
    }

    /// Columns `from..from + cols` of every row, without a copy.
    ///
    /// # Panics
    /// If the range is not inside the last dimension.
    pub fn columns(&self, from: usize, cols: usize) -> Self {
        assert!(from + cols <= self.cols(), "columns {from}..{} of {:?}", from + cols, self.shape);
        assert!(!matches!(self.data, Storage::Packed(_)), "columns of a packed weight");
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = cols;
        }
        Self { offset: self.inside(self.offset + from), shape, ..self.clone() }
    }

    /// Entries `from..from + count` of the first dimension, without a copy.
    ///
    /// # Panics
    /// If the range is not inside the first dimension.
    pub fn narrow(&self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.shape[0], "entries {from}..{} of {:?}", from + count, self.shape);
        assert!(!matches!(self.data, Storage::Packed(_)), "entries of a packed weight");
        let inner: usize = self.shape[1..self.shape.len().max(2) - 1].iter().product();
        let step = if self.shape.len() == 1 { 1 } else { inner * self.stride };
        let mut shape = self.shape.clone();
        shape[0] = count;
        let stride = if self.shape.len() == 1 { count } else { self.stride };
        Self { offset: self.inside(self.offset + from * step), shape, stride, ..self.clone() }
    }

    /// An empty slice at the very end must not start beyond the end.
    fn inside(&self, offset: usize) -> usize {
        match &self.data {
            Storage::Cpu(data) => offset.min(data.len()),
            Storage::Packed(_) => offset,
            Storage::Cuda(buffer, dtype) => offset.min(buffer.bytes() / dtype.bytes()),
            Storage::Nothing(..) => 0,
        }
    }

    /// Entries of the first dimension in the order of `indices`, copied.
    ///
    /// # Errors
    /// If the device has too little memory.
    ///
    /// # Panics
    /// If an index is outside the first dimension.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        let parts: Vec<Tensor> = indices.iter().map(|&i| self.narrow(i, 1)).collect();
        let mut shape = self.shape.clone();
        shape[0] = indices.len();
        Self::joined(self.device(), self.dtype(), &shape, &parts.iter().collect::<Vec<_>>())
    }

    /// Tensors of equal inner shape, one after another along the first dimension.
    ///
    /// # Errors
    /// If the device has too little memory.
    ///
    /// # Panics
    /// If there are none, or their inner shapes, devices or dtypes differ.
    pub fn concat(parts: &[&Tensor]) -> Result<Self> {
        let mut shape = parts[0].shape.clone();
        assert!(parts.iter().all(|part| part.shape[1..] == shape[1..]), "tensors of different inner shapes");
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        Self::joined(parts[0].device(), parts[0].dtype(), &shape, parts)
    }

    fn joined(device: Device, dtype: DType, shape: &[usize], parts: &[&Tensor]) -> Result<Self> {
        let Device::Cuda(gpu) = device else {
            let mut numbers = elapid_kernels::with_room(elements(shape)?)?;
            for part in parts {
                let rows = part.rows();
                (0..part.row_count()).for_each(|row| numbers.extend_from_slice(rows.row(row)));
            }
            return Ok(Self::new(numbers, shape));
        };
        let mut whole = Self::uninit(gpu, dtype, shape)?;
        let mut at = 0;
        for part in parts {
            let rows = part.row_count();
            gpu.copy(part.mat(), whole.mat_mut().rows_range(at, rows))?;
            at += rows;
        }
        Ok(whole)
    }

    /// A tensor of this shape that keeps no elements alive: only its shape can be read.
    pub(crate) fn shape_only(&self) -> Self {
        let data = Storage::Nothing(self.device(), self.dtype());
        Self { data, offset: 0, stride: self.stride, shape: self.shape.clone() }
    }

    /// A new tensor that `write` fills; it starts as zeros.
    ///
    /// # Errors
    /// Those of `write`; if there is too little memory.
    pub fn filled<E>(shape: &[usize], write: impl FnOnce(RowsMut<'_>) -> Result<(), E>) -> Result<Self>
    where
        Error: From<E>,
    {
        let mut values = Values::zeros(elements(shape)?)?;
        write(RowsMut::new(values.make_mut(), shape.last().copied().unwrap_or(1)))?;
        Ok(Self::of_values(values, shape))
    }
}

/// The number of elements of a shape.
fn elements(shape: &[usize]) -> Result<usize> {
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size)).ok_or_else(|| too_many(shape))
}

fn too_many(shape: &[usize]) -> Error {
    Error::Argument(format!("a tensor of shape {shape:?} has more elements than can be addressed"))
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
        assert_eq!(x.select(&[3, 0]).unwrap().as_slice()[..3], [18.0, 19.0, 20.0]);
        assert_eq!(Tensor::concat(&[&x.narrow(0, 1), &x.narrow(1, 3)]).unwrap().as_slice(), x.as_slice());
        assert_eq!(x.columns(1, 1).select(&[1]).unwrap().as_slice(), [7.0, 10.0]);
        assert_eq!(counted(&[5]).narrow(2, 2).as_slice(), [2.0, 3.0]);
        assert_eq!(counted(&[5]).select(&[4, 4]).unwrap().as_slice(), [4.0, 4.0]);
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
