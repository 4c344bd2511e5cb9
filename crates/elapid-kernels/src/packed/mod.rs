//! The linear map y = x Ŵᵀ + bias of inference on a CPU, with a weight Ŵ `[n k]` that is stored in a [`Form`].
//!
//! ```text
//! f32          y_ij = Σ_q x_iq Ŵ_jq
//! bf16         y_ij = Σ_q bf16(x_iq) Ŵ_jq
//! int8, int4   y_ij = Σ_g (s_ig t_jg) Σ_{q in group g} X_iq W_jq      X, W integers; s, t scales of groups of 32
//! ```
//!
//! The activations are rounded as the form needs it: to bf16, or to integers of 8 bits with a scale for each row and group
//! (s = max |x| / 127). The sum of a group is exact, and groups are added in their order, so that an element depends on its
//! row of x and its row of Ŵ alone: not on the batch, the split or the number of threads. With int8 and int4 it does not
//! depend on the instruction set either.
//!
//! [`Packed`] has the layout.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod ceiling;
mod form;
mod forward;
mod input;
mod layout;
pub mod naive;
mod portable;
mod quantise;
#[cfg(test)]
mod tests;
mod tile;

pub use ceiling::product_ceiling;
pub use form::{Form, GROUP, Line, PANEL};
pub(crate) use forward::forward as multiply;
pub use layout::Packed;
pub use quantise::Rounding;

use crate::error::{Check, Result};
use crate::{Isa, Rows, RowsMut};

const CHECK: Check = Check("packed");

/// y = x Ŵᵀ + bias.
///
/// `x` `[m k]`, `w` `[n k]`, `bias` `[n]`, `y` `[m n]` (=).
///
/// # Errors
/// If shapes differ.
pub fn forward(x: Rows<'_>, w: &Packed, bias: Option<&[f32]>, y: RowsMut<'_>) -> Result<()> {
    let (m, k) = x.shape();
    let (n, columns) = w.shape();
    let shape = |rows: usize, cols: usize| format!("[{rows} {cols}]");
    CHECK.that(columns == k, "w", || shape(n, k), || shape(n, columns))?;
    CHECK.that(y.shape() == (m, n), "y", || shape(m, n), || shape(y.shape().0, y.shape().1))?;
    if let Some(bias) = bias {
        CHECK.that(bias.len() == n, "bias", || format!("{n} values"), || format!("{}", bias.len()))?;
    }
    forward::forward(Isa::best(), x, w, bias, y);
    Ok(())
}
