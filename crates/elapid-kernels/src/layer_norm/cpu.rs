//! On the CPU: rows are split among threads, and a row is the equation's loop.

use super::{Args, Residual, naive};
use crate::parallel::{Each, grain, split};
use crate::{Rows, RowsMut};

pub(super) fn forward(args: &Args<Rows<'_>>, y: RowsMut<'_>, sum: Option<RowsMut<'_>>, statistics: &mut [f32]) {
    let (m, d) = args.x.shape();
    let outputs = (y, sum, Each(statistics, 2));
    split(m, grain(m, 4 * d, 1 << 16, 1), outputs, &|from, rows, (y, sum, Each(statistics, _))| {
        let residual = args.residual.map(|residual| Residual { r: residual.r.slice(from, rows), ..residual });
        naive::forward(&Args { x: args.x.slice(from, rows), residual, ..*args }, y, sum, statistics);
    });
}
