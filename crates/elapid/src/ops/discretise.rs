//! A diagonal linear system in discrete time.

pub use elapid_kernels::discretise::Form as SystemForm;
use elapid_kernels::discretise::{self as kernel, Args, Grads};
use elapid_kernels::{DType, View};

use crate::autograd::{Var, Want, record};
use crate::{Result, Tensor};

/// ā `[2n]` f32 and b̄ `[2n d]` in the dtype given, both conjugated, of three parameters `[n]` and B `[2n d]`; see
/// [`elapid_kernels::discretise`].
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn discretise(form: SystemForm, params: [&Var; 3], b: &Var, dtype: DType) -> Result<(Var, Var)> {
    fn args<'a>(params: [&'a Var; 3], b: &'a Var) -> Args<View<'a>> {
        Args { params: params.map(|x| x.value().view_flat()), b: b.value().view() }
    }
    let device = b.value().device();
    let mut a_bar = Tensor::output(device, DType::F32, &[b.value().row_count()])?;
    let mut b_bar = Tensor::output(device, dtype, b.shape())?;
    kernel::forward(form, args(params, b), a_bar.view_mut(), b_bar.view_mut())?;
    let [one, two, three] = params;
    let (kept, kept_b) = (params.map(Var::clone), b.clone());
    let [a_bar, b_bar] = record(&[one, two, three, b], [a_bar, b_bar], move |grads, [a_bar, b_bar]| {
        let (da, db) = (grads.take_or_zeros(a_bar)?, grads.take_or_zeros(b_bar)?);
        let [one, two, three] = &kept;
        let wants = [Want::Add(one), Want::Add(two), Want::Add(three), Want::Add(&kept_b)];
        grads.write(wants, |[one, two, three, of_b]| {
            let (Some(one), Some(two), Some(three), Some(of_b)) = (one, two, three, of_b) else { return Ok(()) };
            let grads = Grads { params: [one, two, three], db: of_b };
            kernel::backward(form, args(kept.each_ref(), &kept_b), da.view_flat(), db.view(), grads)
        })
    });
    Ok((a_bar, b_bar))
}
