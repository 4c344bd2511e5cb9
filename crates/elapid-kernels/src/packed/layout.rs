//! How a stored weight lies in memory and in a file.

use std::fmt;

use half::bf16;
use pulp::{Simd, WithSimd};

use super::form::{Form, GROUP, Line, PANEL};
use super::quantise::{self, Rounding};
use crate::alloc::{OutOfMemory, with_room};
use crate::{Isa, Rows, parallel};

/// A weight `[n k]` in a [`Form`].
///
/// 16 rows are a panel: a vector holds one value (or a few neighbours along k) of each of its rows, so that a product needs
/// no sum over lanes. Missing rows and columns are zeros. For row r of 16, in bytes:
///
/// ```text
/// f32    [k     ][r][1]  value q
/// bf16   [k/2   ][r][2]  values 2q, 2q + 1
/// int8   [k/32 8][r][4]  values 4q .. 4q + 4, each plus 128
/// int4   [k/32 4][r][4]  values 4q .. 4q + 4 of the group, each plus 8, in the lower half of the byte;
///                        values 16 + 4q .. 16 + 4q + 4 in the upper half
///        then [k/32][r] scales in bf16, filled up to a cache line
/// ```
#[derive(Clone)]
pub struct Packed {
    form: Form,
    n: usize,
    k: usize,
    lines: Vec<Line>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} [{} {}])", self.form, self.n, self.k)
    }
}

impl Packed {
    /// Rounds a weight `[n k]` to a form. `rounding` is of int4 alone.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn new(form: Form, w: Rows<'_>, rounding: Rounding<'_>) -> Result<Self, OutOfMemory> {
        let ((n, k), isa) = (w.shape(), Isa::best());
        Self::read_with(form, (n, k), |bytes| {
            let panel = form.panel_bytes(k).max(1);
            let panels: Vec<&mut [u8]> = bytes.chunks_exact_mut(panel).collect();
            let grain = parallel::grain(panels.len(), PANEL * k, 1 << 16, 1);
            parallel::split(panels.len(), grain, panels, &|from, _, panels| {
                for (i, panel) in panels.into_iter().enumerate() {
                    let first = (from + i) * PANEL;
                    let rows = w.slice(first, PANEL.min(n - first));
                    isa.run(Panel { form, rows, rounding, bytes: panel });
                }
            });
            Ok(())
        })
    }

    /// A weight whose bytes, as [`bytes`](Self::bytes) has them, are written by `read`; they start as zeros.
    ///
    /// # Errors
    /// If there is too little memory; those of `read`.
    pub fn read_with<E: From<OutOfMemory>>(
        form: Form,
        (n, k): (usize, usize),
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let count = Self::size(form, (n, k)).unwrap_or(usize::MAX) / Line::BYTES;
        let mut lines = with_room(count)?;
        lines.resize(count, Line::ZERO);
        crate::os::memory::use_huge_pages(&lines);
        // SAFETY: a line is 64 bytes without padding, and any bytes are one.
        let bytes = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), count * Line::BYTES) };
        read(bytes)?;
        Ok(Self { form, n, k, lines })
    }

    /// Bytes of a weight `[n k]` in a form; none if they cannot be addressed.
    pub fn size(form: Form, (n, k): (usize, usize)) -> Option<usize> {
        let padded = k.checked_add(GROUP)?.checked_mul(8 * PANEL)?.checked_mul(n.div_ceil(PANEL))?;
        (padded <= isize::MAX as usize).then(|| form.panel_bytes(k) * n.div_ceil(PANEL))
    }

    /// The form.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * Line::BYTES) }
    }

    /// Panels: their number.
    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// The bytes of panel `p`.
    pub(super) fn panel(&self, p: usize) -> &[u8] {
        let bytes = self.form.panel_bytes(self.k);
        &self.bytes()[p * bytes..][..bytes]
    }

    /// Whether all values are.
    pub fn is_finite(&self) -> bool {
        let values = self.form.values_bytes(self.k);
        let halves = |bytes: &[u8]| bytes.as_chunks::<2>().0.iter().all(|&b| u16::from_le_bytes(b) & 0x7f80 != 0x7f80);
        (0..self.panels()).all(|p| match self.form {
            Form::F32 => self.panel(p).as_chunks::<4>().0.iter().all(|&b| f32::from_le_bytes(b).is_finite()),
            Form::Bf16 => halves(self.panel(p)),
            Form::Int8 | Form::Int4 => halves(&self.panel(p)[values..]),
        })
    }

    /// Writes row `j` of Ŵ, `[k]`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn read_row(&self, j: usize, out: &mut [f32]) {
        assert!(j < self.n && out.len() == self.k, "row {j} of {self:?} into {} values", out.len());
        let (panel, r) = (self.panel(j / PANEL), j % PANEL);
        let (values, scales) = panel.split_at(self.form.values_bytes(self.k));
        for (q, out) in out.iter_mut().enumerate() {
            let at = place(self.form, r, q);
            let scale = || read_scale(scales, q / GROUP, r);
            *out = match self.form {
                Form::F32 => f32::from_le_bytes([values[at], values[at + 1], values[at + 2], values[at + 3]]),
                Form::Bf16 => bf16::from_le_bytes([values[at], values[at + 1]]).to_f32(),
                Form::Int8 => scale() * (f32::from(values[at]) - 128.0),
                Form::Int4 => scale() * (f32::from((values[at] >> half_of(q)) & 15) - 8.0),
            };
        }
    }

    /// Ŵ, row after row.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn to_vec(&self) -> Result<Vec<f32>, OutOfMemory> {
        let mut all = crate::zeros(self.n * self.k)?;
        if self.k > 0 {
            all.chunks_exact_mut(self.k).enumerate().for_each(|(j, row)| self.read_row(j, row));
        }
        Ok(all)
    }
}

/// The byte of value `q` of row `r` in a panel.
fn place(form: Form, r: usize, q: usize) -> usize {
    match form {
        Form::F32 => 4 * (PANEL * q + r),
        Form::Bf16 => 4 * (PANEL * (q / 2) + r) + 2 * (q % 2),
        Form::Int8 => 4 * (PANEL * (q / 4) + r) + q % 4,
        Form::Int4 => (q / GROUP) * (PANEL * GROUP / 2) + 4 * (PANEL * (q % 16 / 4) + r) + q % 4,
    }
}

/// Bits by which an integer of 4 bits is shifted in its byte.
fn half_of(q: usize) -> u32 {
    if q % GROUP < GROUP / 2 { 0 } else { 4 }
}

pub(super) fn read_scale(scales: &[u8], group: usize, r: usize) -> f32 {
    let at = 2 * (PANEL * group + r);
    bf16::from_le_bytes([scales[at], scales[at + 1]]).to_f32()
}

/// A panel to write.
struct Panel<'a> {
    form: Form,
    rows: Rows<'a>,
    rounding: Rounding<'a>,
    bytes: &'a mut [u8],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        write_panel(self.form, self.rows, self.rounding, self.bytes);
    }
}

#[inline(always)]
fn write_panel(form: Form, rows: Rows<'_>, rounding: Rounding<'_>, panel: &mut [u8]) {
    let k = rows.cols();
    let (values, scales) = panel.split_at_mut(form.values_bytes(k));
    match form {
        Form::F32 | Form::Bf16 => {}
        // Integers of missing rows and columns are zeros too.
        Form::Int8 => values.fill(128),
        Form::Int4 => values.fill(0x88),
    }
    for r in 0..rows.rows() {
        let row = rows.row(r);
        match form {
            Form::F32 => {
                for (q, x) in row.iter().enumerate() {
                    values[place(form, r, q)..][..4].copy_from_slice(&x.to_le_bytes());
                }
            }
            Form::Bf16 => {
                for (q, &x) in row.iter().enumerate() {
                    values[place(form, r, q)..][..2].copy_from_slice(&bf16::from_f32(x).to_le_bytes());
                }
            }
            Form::Int8 | Form::Int4 => {
                for (g, group) in row.chunks(GROUP).enumerate() {
                    let mut padded = [0.0; GROUP];
                    padded[..group.len()].copy_from_slice(group);
                    let (scale, integers) = match form {
                        Form::Int8 => quantise::int8(&padded),
                        _ => quantise::int4(&padded, rounding.of_group(g)),
                    };
                    scales[2 * (PANEL * g + r)..][..2].copy_from_slice(&scale.to_le_bytes());
                    for (i, &integer) in integers[..group.len()].iter().enumerate() {
                        let q = g * GROUP + i;
                        let at = place(form, r, q);
                        if form == Form::Int8 {
                            values[at] = (integer + 128.0) as u8;
                        } else {
                            let half = half_of(q);
                            values[at] = values[at] & !(15 << half) | ((integer + 8.0) as u8) << half;
                        }
                    }
                }
            }
        }
    }
}
