//! Strided matrices, which allow packed projections (`[x z]`, `[dt B C]`) to be read in place.

use std::marker::PhantomData;

use crate::error::{Check, Result};

/// A matrix to read: `rows` rows of `cols` contiguous elements, `stride` elements from row to row.
///
/// Activations `[b l d]` are matrices of `b * l` rows. `T` is `f32`, or `f64` in the oracles.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T: Copy> Rows<'a, T> {
    /// A matrix without gaps over all of `data`; `data.len()` must be a multiple of `cols`.
    ///
    /// # Panics
    /// If `cols` is 0 while `data` is not empty, or does not divide its length.
    pub fn new(data: &'a [T], cols: usize) -> Self {
        let rows = data.len().checked_div(cols).unwrap_or(0);
        assert_eq!(rows * cols, data.len(), "a matrix of {cols} columns over {} elements", data.len());
        Self { data, rows, cols, stride: cols }
    }

    /// A matrix inside `data`, its first element at `data[0]`.
    ///
    /// # Errors
    /// If the last row would end after `data`, or rows would overlap.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_bounds(data.len(), rows, cols, stride)?;
        Ok(Self { data, rows, cols, stride })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of elements in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the start of a row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Row `r`.
    #[inline(always)]
    pub fn row(&self, r: usize) -> &'a [T] {
        &self.data[r * self.stride..][..self.cols]
    }

    /// Columns `from..from + cols` of every row.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn columns(&self, from: usize, cols: usize) -> Self {
        assert!(from + cols <= self.cols, "columns {from}..{} of {}", from + cols, self.cols);
        let data = if self.rows == 0 { &self.data[..0] } else { &self.data[from..] };
        Self { data, cols, ..*self }
    }

    /// Rows `from..from + rows`.
    ///
    /// # Panics
    /// If the range is not inside the matrix.
    pub fn slice(&self, from: usize, rows: usize) -> Self {
        assert!(from + rows <= self.rows, "rows {from}..{} of {}", from + rows, self.rows);
        let data = if rows == 0 { &self.data[..0] } else { &self.data[from * self.stride..] };
        Self { data, rows, ..*self }
    }

    /// Whether there are no gaps between rows.
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }

    /// The whole matrix as one slice.
    ///
    /// # Panics
    /// If there are gaps between its rows.
    pub fn as_slice(&self) -> &'a [T] {
        assert!(self.is_contiguous(), "a matrix with gaps has no single slice");
        &self.data[..self.rows * self.cols]
    }

    /// The elements without gaps, row after row.
    pub fn to_vec(&self) -> Vec<T> {
        (0..self.rows).flat_map(|r| self.row(r).iter().copied()).collect()
    }

    /// Pointer to the first element, for matrix products.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.data.as_ptr()
    }
}

fn check_bounds(len: usize, rows: usize, cols: usize, stride: usize) -> Result<()> {
    let check = Check("rows");
    check.that(rows <= 1 || stride >= cols, "stride", || format!("at least {cols}"), || format!("{stride}"))?;
    let end = match rows {
        0 => Some(0),
        r => (r - 1).checked_mul(stride).and_then(|at| at.checked_add(cols)),
    };
    check.that(
        end.is_some_and(|end| end <= len),
        "data",
        || format!("room for {rows} rows of {cols}, {stride} apart"),
        || format!("{len} elements"),
    )
}

/// A matrix to write, in the form of [`Rows`]. It can be split into parts that different threads write.
#[derive(Debug)]
pub struct RowsMut<'a, T = f32> {
    data: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: a `RowsMut` is the only way to its elements while it lives (constructed from `&mut [T]`, and cut only
// into disjoint parts), so it may go to another thread exactly as `&mut [T]` may.
unsafe impl<T: Send> Send for RowsMut<'_, T> {}

impl<'a, T: Copy> RowsMut<'a, T> {
    /// A matrix without gaps over all of `data`; `data.len()` must be a multiple of `cols`.
    ///
    /// # Panics
    /// If `cols` is 0 while `data` is not empty, or does not divide its length.
    pub fn new(data: &'a mut [T], cols: usize) -> Self {
        let rows = data.len().checked_div(cols).unwrap_or(0);
        assert_eq!(rows * cols, data.len(), "a matrix of {cols} columns over {} elements", data.len());
        Self { data: data.as_mut_ptr(), rows, cols, stride: cols, life: PhantomData }
    }

    /// A matrix inside `data`, its first element at `data[0]`.
    ///
    /// # Errors
    /// If the last row would end after `data`, or rows would overlap.
    pub fn strided(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_bounds(data.len(), rows, cols, stride)?;
        Ok(Self { data: data.as_mut_ptr(), rows, cols, stride, life: PhantomData })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of elements in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from the start of a row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Whether there are no gaps between rows.
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> RowsMut<'_, T> {
        RowsMut { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride, life: PhantomData }
    }

    /// Row `r`.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn row(&mut self, r: usize) -> &mut [T] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: `r < rows`, and the constructors checked that every row is inside the allocation; rows do not
        // overlap, and `&mut self` makes this the only reference to the row.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(r * self.stride), self.cols) }
    }

    /// The whole matrix as one slice.
    ///
    /// # Panics
    /// If there are gaps between its rows.
    pub fn into_slice(self) -> &'a mut [T] {
        assert!(self.is_contiguous(), "a matrix with gaps has no single slice");
        // SAFETY: without gaps the rows are `rows * cols` neighbouring elements of the allocation that the constructors
        // checked, and `self` was the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.rows * self.cols) }
    }

    /// Two matrices: the columns before `at` and those from `at` on.
    ///
    /// # Panics
    /// If `at` is after the last column.
    pub fn split_columns(self, at: usize) -> (RowsMut<'a, T>, RowsMut<'a, T>) {
        assert!(at <= self.cols, "a cut at column {at} of {}", self.cols);
        // SAFETY: `at <= cols`; a matrix without rows keeps its (possibly dangling) pointer.
        let right = if self.rows == 0 { self.data } else { unsafe { self.data.add(at) } };
        (Self { cols: at, ..self }, Self { data: right, cols: self.cols - at, ..self })
    }

    /// Two matrices: the rows before `at` and those from `at` on.
    ///
    /// # Panics
    /// If `at` is after the last row.
    pub fn split_rows(self, at: usize) -> (RowsMut<'a, T>, RowsMut<'a, T>) {
        assert!(at <= self.rows, "a cut at row {at} of {}", self.rows);
        // SAFETY: for `at < rows` row `at` is inside the allocation; otherwise the second part is empty and never read.
        let below = if at == self.rows { self.data } else { unsafe { self.data.add(at * self.stride) } };
        (Self { rows: at, ..self }, Self { data: below, rows: self.rows - at, ..self })
    }

    /// Sets every element.
    pub fn fill(&mut self, value: T) {
        for r in 0..self.rows {
            self.row(r).fill(value);
        }
    }

    /// Copies every element.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn copy_from(&mut self, from: Rows<'_, T>) {
        assert_eq!(self.shape(), from.shape());
        for r in 0..self.rows {
            self.row(r).copy_from_slice(from.row(r));
        }
    }

    /// Pointer to the first element, for matrix products and for kernels that write blocks from several threads.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.data
    }
}
