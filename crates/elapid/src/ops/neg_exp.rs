//! A = -exp(A_log).

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// -exp(x), element by element: how A stays negative (Mamba, section 3.6).
///
/// # Errors
/// Never for variables of one tape.
pub fn neg_exp(x: &Var) -> Result<Var> {
    let y = Tensor::new(x.value().as_slice().iter().map(|x| -x.exp()).collect(), x.shape());
    let (kept, value) = (x.clone(), y.clone());
    let [y] = record(&[x], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y) else { return Ok(()) };
        grads.write([Want::Add(&kept)], |[dx]| {
            let terms = dy.as_slice().iter().zip(value.as_slice());
            dx.into_slice().iter_mut().zip(terms).for_each(|(dx, (dy, y))| *dx += dy * y);
            Ok(())
        })
    });
    Ok(y)
}
