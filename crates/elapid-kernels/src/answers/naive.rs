//! The equations as loops.

use crate::Rows;

/// The likeliest id, the loss and the lead of each row, as [`super::forward`] has them.
pub fn forward(logits: Rows<'_, f64>, targets: &[i32]) -> Vec<(u32, f64, f64)> {
    (0..logits.rows())
        .map(|r| {
            let z = logits.row(r);
            let mut likeliest = 0;
            for j in 0..z.len() {
                if z[j] > z[likeliest] || z[likeliest].is_nan() && !z[j].is_nan() {
                    likeliest = j;
                }
            }
            let (top, own) = (z[likeliest], z[targets[r] as usize]);
            let sum: f64 = z.iter().map(|z| (z - top).exp()).sum();
            (likeliest as u32, top + sum.ln() - own, own - z.iter().sum::<f64>() / z.len() as f64)
        })
        .collect()
}
