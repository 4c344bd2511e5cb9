//! On the CPU: the products of `linear`, expert by expert. Each is split among threads by itself.

use super::args::HostOrder;
use crate::error::Result;
use crate::linear::{cpu, invariant};
use crate::{Isa, Rows, RowsMut};

/// Rows of a matrix to write.
fn part<'m>(matrix: &'m mut RowsMut<'_>, from: usize, rows: usize) -> RowsMut<'m> {
    matrix.reborrow().split_rows(from).1.split_rows(rows).0
}

pub(super) fn forward(
    order: &HostOrder,
    x: Rows<'_>,
    w: Rows<'_>,
    mut y: RowsMut<'_>,
    is_invariant: bool,
) -> Result<()> {
    let rows = y.cols();
    for (e, group) in order.groups().filter(|(_, group)| !group.is_empty()) {
        let (x, w) = (x.slice(group.start, group.len()), w.slice(e * rows, rows));
        let y = part(&mut y, group.start, group.len());
        match is_invariant {
            true => invariant::forward(Isa::best(), x, w, None, y),
            false => cpu::forward(x, w, None, y),
        }
    }
    Ok(())
}

pub(super) fn backward_input(order: &HostOrder, dy: Rows<'_>, w: Rows<'_>, mut dx: RowsMut<'_>) -> Result<()> {
    let rows = dy.cols();
    for (e, group) in order.groups().filter(|(_, group)| !group.is_empty()) {
        let (dy, w) = (dy.slice(group.start, group.len()), w.slice(e * rows, rows));
        cpu::backward_input(dy, w, part(&mut dx, group.start, group.len()), false);
    }
    Ok(())
}

pub(super) fn backward_weight(order: &HostOrder, dy: Rows<'_>, x: Rows<'_>, mut dw: RowsMut<'_>) -> Result<()> {
    let rows = dy.cols();
    for (e, group) in order.groups().filter(|(_, group)| !group.is_empty()) {
        let (dy, x) = (dy.slice(group.start, group.len()), x.slice(group.start, group.len()));
        cpu::backward_weight(dy, x, part(&mut dw, e * rows, rows));
    }
    Ok(())
}
