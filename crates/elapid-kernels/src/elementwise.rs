//! Element by element, and row by row: sums, factors, zeros, one row for all. What the tape needs between operations.

use crate::cuda::{self, Result};
use crate::error::Check;
use crate::{View, ViewMut};

const CHECK: Check = Check("elementwise");

/// to += from, of one shape; f32 arithmetic, any formats.
///
/// # Errors
/// If shapes or devices differ, or a device failed.
pub fn add<'a>(from: impl Into<View<'a>>, to: impl Into<ViewMut<'a>>) -> Result<()> {
    let (from, to) = (from.into(), to.into());
    CHECK.matrix("to", &to, from.shape())?;
    match to {
        ViewMut::Host(mut to) => {
            let from = CHECK.host("from", from)?;
            for r in 0..to.rows() {
                to.row(r).iter_mut().zip(from.row(r)).for_each(|(to, from)| *to += from);
            }
            Ok(())
        }
        ViewMut::Device(to) => {
            let gpu = to.gpu();
            cuda::elementwise::add(&gpu, CHECK.device("from", from, gpu)?, to)
        }
    }
}

/// x *= factor.
///
/// # Errors
/// If a device failed.
pub fn scale<'a>(x: impl Into<ViewMut<'a>>, factor: f32) -> Result<()> {
    match x.into() {
        ViewMut::Host(mut x) => {
            for r in 0..x.rows() {
                x.row(r).iter_mut().for_each(|x| *x *= factor);
            }
            Ok(())
        }
        ViewMut::Device(x) => cuda::elementwise::scale(&x.gpu(), x, factor),
    }
}

/// x = value, everywhere.
///
/// # Errors
/// If a device failed.
pub fn fill<'a>(x: impl Into<ViewMut<'a>>, value: f32) -> Result<()> {
    match x.into() {
        ViewMut::Host(mut x) => {
            x.fill(value);
            Ok(())
        }
        ViewMut::Device(x) => cuda::elementwise::fill(&x.gpu(), x, value),
    }
}

/// x = 0.
///
/// # Errors
/// If a device failed.
pub fn zero<'a>(x: impl Into<ViewMut<'a>>) -> Result<()> {
    match x.into() {
        ViewMut::Host(mut x) => {
            x.fill(0.0);
            Ok(())
        }
        ViewMut::Device(x) => x.gpu().zero(x),
    }
}

/// Every row of y (=) is `row`, rounded to the format of y.
///
/// # Errors
/// If widths or devices differ, or a device failed or has too little memory.
pub fn repeat<'a>(row: impl Into<View<'a>>, y: impl Into<ViewMut<'a>>) -> Result<()> {
    let (row, y) = (row.into(), y.into());
    CHECK.matrix("row", &row, (1, y.shape().1))?;
    match y {
        ViewMut::Host(mut y) => {
            let row = CHECK.host("row", row)?.row(0);
            (0..y.rows()).for_each(|r| y.row(r).copy_from_slice(row));
            Ok(())
        }
        ViewMut::Device(y) => {
            let gpu = y.gpu();
            cuda::elementwise::repeat(&gpu, CHECK.device("row", row, gpu)?, y)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fault;
    use crate::{Rows, RowsMut};

    #[test]
    fn rows_with_gaps() {
        let from = [1.0, 2.0, 9.0, 3.0, 4.0];
        let from = Rows::strided(&from, 2, 2, 3).unwrap();
        let mut to = [10.0, 20.0, 30.0, 40.0];
        add(from, RowsMut::new(&mut to, 2)).unwrap();
        scale(RowsMut::new(&mut to, 2), 2.0).unwrap();
        assert_eq!(to, [22.0, 44.0, 66.0, 88.0]);
        zero(RowsMut::strided(&mut to, 2, 1, 2).unwrap()).unwrap();
        assert_eq!(to, [0.0, 44.0, 0.0, 88.0]);
        fill(RowsMut::strided(&mut to[1..], 2, 1, 2).unwrap(), 3.0).unwrap();
        assert_eq!(to, [0.0, 3.0, 0.0, 3.0]);
        repeat(&[5.0, 6.0], RowsMut::new(&mut to, 2)).unwrap();
        assert_eq!(to, [5.0, 6.0, 5.0, 6.0]);
        assert_eq!(fault(add(from, RowsMut::new(&mut to, 4))).argument, "to");
        assert_eq!(fault(repeat(&[5.0], RowsMut::new(&mut to, 2))).argument, "row");
    }
}
