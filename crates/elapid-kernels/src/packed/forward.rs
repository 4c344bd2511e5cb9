//! The product in tiles: a few rows of x by a few panels of Ŵ.

use std::cell::Cell;
use std::ops::Range;

use super::form::{Form, PANEL};
use super::input::{Input, Room};
use super::layout::Packed;
use super::portable;
use super::tile::Tile;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::parallel::{self, Columns};
use crate::{Isa, Rows, RowsMut};

/// Minimum number of multiplications for using several threads.
const LEAST: usize = 1 << 17;
/// Bytes of Ŵ that are read again and again while they stay in a second-level cache.
const BLOCK: usize = 1 << 19;
/// Minimum rows of x for which threads split rows of x instead of panels of Ŵ.
const TALL: usize = 96;

thread_local! {
    static ROOM: Cell<Option<Room>> = const { Cell::new(None) };
}

/// Shapes as in [`super::forward`].
pub(crate) fn forward(isa: Isa, x: Rows<'_>, w: &Packed, bias: Option<&[f32]>, y: RowsMut<'_>) {
    let ((m, k), (n, _)) = (x.shape(), w.shape());
    if m == 0 || n == 0 {
        return;
    }
    // Taken, not borrowed: a thread that waits for its parts may begin another product.
    let mut room = ROOM.take().unwrap_or_default();
    let x = Input::new(isa, w.form(), x, &mut room);
    let multiply = product(isa, w.form());
    if m >= TALL {
        let grain = parallel::grain(m, n * k, LEAST, 24);
        parallel::split(m, grain, y, &|from, count, y| {
            multiply(Part { x, rows: from..from + count, w, panels: 0..w.panels(), bias, y })
        });
    } else {
        let grain = parallel::grain(n, m * k, LEAST, 8 * PANEL);
        parallel::split(n, grain, Columns(y), &|from, count, Columns(y)| {
            let bias = bias.map(|bias| &bias[from..][..count]);
            let panels = from / PANEL..(from + count).div_ceil(PANEL);
            multiply(Part { x, rows: 0..m, w, panels, bias, y });
        });
    }
    ROOM.set(Some(room));
}

/// Rows and panels for one thread; the bias and y are of these alone.
struct Part<'a> {
    x: Input<'a>,
    rows: Range<usize>,
    w: &'a Packed,
    panels: Range<usize>,
    bias: Option<&'a [f32]>,
    y: RowsMut<'a>,
}

fn product(isa: Isa, form: Form) -> fn(Part<'_>) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512(_) => match form {
            Form::F32 => return multiply::<avx512::F32>,
            Form::Bf16 if is_x86_feature_detected!("avx512bf16") => return multiply::<avx512::Bf16>,
            Form::Int8 if is_x86_feature_detected!("avx512vnni") => return multiply::<avx512::Int8>,
            Form::Int4 if is_x86_feature_detected!("avx512vnni") => return multiply::<avx512::Int4>,
            _ => {}
        },
        Isa::Avx2(_) => {}
        Isa::Portable => return portable(form),
    }
    #[cfg(target_arch = "x86_64")]
    return match form {
        Form::F32 => multiply::<avx2::F32>,
        Form::Bf16 => multiply::<avx2::Bf16>,
        Form::Int8 => multiply::<avx2::Int8>,
        Form::Int4 => multiply::<avx2::Int4>,
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        // A file for NEON goes here: its tiles have the same panels, a quarter of one in a vector.
        let _ = isa;
        portable(form)
    }
}

fn portable(form: Form) -> fn(Part<'_>) {
    match form {
        Form::F32 => multiply::<portable::F32>,
        Form::Bf16 => multiply::<portable::Bf16>,
        Form::Int8 => multiply::<portable::Int8>,
        Form::Int4 => multiply::<portable::Int4>,
    }
}

fn multiply<T: Tile>(mut part: Part<'_>) {
    let bytes = part.w.form().panel_bytes(part.w.shape().1).max(1);
    let block = (BLOCK / bytes).max(8).next_multiple_of(8);
    for from in part.panels.clone().step_by(block) {
        let panels = from..part.panels.end.min(from + block);
        let mut i = 0;
        while i < part.rows.len() {
            i += match part.rows.len() - i {
                1 => part.row::<T>(i, panels.clone()),
                2 | 3 => part.rows::<T, 2>(i, panels.clone()),
                4 | 5 => part.rows::<T, 4>(i, panels.clone()),
                _ => part.rows::<T, 6>(i, panels.clone()),
            };
        }
    }
}

impl Part<'_> {
    /// One row by all of these panels.
    fn row<T: Tile>(&mut self, i: usize, panels: Range<usize>) -> usize {
        let mut p = panels.start;
        while p + 8 <= panels.end {
            p += self.tile::<T, 1, 8>(i, p);
        }
        while p + 2 <= panels.end {
            p += self.tile::<T, 1, 2>(i, p);
        }
        if p < panels.end {
            self.tile::<T, 1, 1>(i, p);
        }
        1
    }

    /// `M` rows by all of these panels.
    fn rows<T: Tile, const M: usize>(&mut self, i: usize, panels: Range<usize>) -> usize {
        let mut p = panels.start;
        while T::PANELS == 4 && p + 4 <= panels.end {
            p += self.tile::<T, M, 4>(i, p);
        }
        while p + 2 <= panels.end {
            p += self.tile::<T, M, 2>(i, p);
        }
        if p < panels.end {
            self.tile::<T, M, 1>(i, p);
        }
        M
    }

    fn tile<T: Tile, const M: usize, const N: usize>(&mut self, i: usize, p: usize) -> usize {
        let mut sums = [[[0.0; PANEL]; N]; M];
        let x = std::array::from_fn(|a| self.x.row(self.rows.start + i + a));
        let w = std::array::from_fn(|b| self.w.panel(p + b));
        // SAFETY: `product` chose the tile for this CPU and this form, and `Input` and `Packed` have the sizes of one product.
        unsafe { T::tile::<M, N>(x, w, &mut sums) };
        let first = (p - self.panels.start) * PANEL;
        let count = (N * PANEL).min(self.y.cols() - first);
        for (a, sums) in sums.iter().enumerate() {
            let y = &mut self.y.row(i + a)[first..][..count];
            y.copy_from_slice(&sums.as_flattened()[..count]);
            if let Some(bias) = self.bias {
                y.iter_mut().zip(&bias[first..]).for_each(|(y, bias)| *y += bias);
            }
        }
        N
    }
}
