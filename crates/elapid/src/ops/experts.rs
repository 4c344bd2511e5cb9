//! A mixture of experts: a router that picks some of many feed-forwards for each position, and the feed-forwards.

use std::sync::Arc;

use elapid_kernels::DType;
use elapid_kernels::experts::{self as kernel, Order};
use elapid_kernels::pointwise::Function;
pub use elapid_kernels::router::Router;
use elapid_kernels::router::{self, Indices};

use super::linear::linear;
use super::pointwise::{add_scaled, cast, glu, map, scaled};
use crate::autograd::{Var, Want, record};
use crate::{Error, Result, Tensor};

/// The experts of each position `[m k]`, the best first.
pub type Picked = Arc<Indices>;

/// The experts of each position, and their weights `[.. k]` in f32, from logits `[.. experts]`. A correction `[experts]` is added to
/// the scores or the logits for the pick alone. The pick has no gradient, the weights have.
///
/// # Errors
/// If there are fewer experts than are picked, or groups do not divide them.
pub fn route(logits: &Var, router: Router, correction: Option<&Var>) -> Result<(Picked, Var)> {
    let shape = [&logits.shape()[..logits.shape().len() - 1], &[router.top_k]].concat();
    let mut weights = Tensor::output(logits.value().device(), DType::F32, &shape)?;
    let correction = correction.map(|correction| correction.value().view_flat());
    let picked = router::forward(&router, logits.value().view(), correction, weights.view_mut())?;
    let picked: Picked = Arc::new(picked);
    let (kept, of) = (logits.clone(), picked.clone());
    let [weights] = record(&[logits], [weights], move |grads, [weights]| {
        let Some(dweights) = grads.take(weights)? else { return Ok(()) };
        grads.set_by(&kept, |dlogits| {
            router::backward(&router, kept.value().view(), of.view(), dweights.view(), dlogits)
        })
    });
    Ok((picked, weights))
}

/// What to add to the logits `[.. experts]` so that the picks of all positions are spread evenly, `[experts]` in f32; it has no
/// gradient.
///
/// # Errors
/// If there are too many experts; if a device failed, or has too little memory.
pub fn sinkhorn(logits: &Var) -> Result<Var> {
    let mut correction = Tensor::output(logits.value().device(), DType::F32, &[logits.value().cols()])?;
    router::sinkhorn(logits.value().view(), correction.view_mut())?;
    Ok(correction.into())
}

/// How a router spreads positions over experts, `[1 2·experts]` in f32: fₑ, the picks of expert e per position, and Pₑ, its mean
/// probability. P has a gradient, f has none.
///
/// # Errors
/// If there is too little memory.
pub fn spread(logits: &Var, picked: &Picked) -> Result<Var> {
    let experts = logits.value().cols();
    let mut both = Tensor::output(logits.value().device(), DType::F32, &[2, experts])?;
    router::spread(logits.value().view(), picked.view(), both.view_mut())?;
    let kept = logits.clone();
    let [both] = record(&[logits], [both.reshape(&[1, 2 * experts])], move |grads, [both]| {
        let Some(dboth) = grads.take(both)? else { return Ok(()) };
        let dboth = dboth.reshape(&[2, experts]);
        grads.set_by(&kept, |dlogits| router::spread_backward(kept.value().view(), dboth.view(), dlogits))
    });
    Ok(both)
}

/// The load-balancing loss `[1]` of routers with these [`spread`]s (Switch, equation 4): experts · Σₑ fₑ Pₑ, with f and P the means
/// over the routers; k if all experts are used alike. Switch has one loss per router, `transformers` one of all.
///
/// # Errors
/// If there are none, or they have different numbers of experts.
pub fn balance(spreads: &[Var]) -> Result<Var> {
    let Some((first, others)) = spreads.split_first() else {
        return Err(Error::Argument("the balance of no router".into()));
    };
    let part = 1.0 / spreads.len() as f32;
    let mut mean = if others.is_empty() { first.clone() } else { scaled(first, part)? };
    for other in others {
        if other.shape() != mean.shape() {
            let [one, two] = [&mean, other].map(|spread| spread.value().cols() / 2);
            return Err(Error::Argument(format!("the common balance of {one} experts and of {two}")));
        }
        mean = add_scaled(&mean, 1.0, other, part)?;
    }
    let experts = mean.value().cols() / 2;
    let (f, p) = (mean.detach().columns(0, experts), mean.columns(experts, experts));
    Ok(scaled(&linear(&f, &p, None)?, experts as f32)?.reshape(&[1]))
}

/// The z loss of a router `[1]`: the mean of log² Σₑ exp(logitₑ), which keeps logits small (ST-MoE, Zoph et al. 2022, eq. 5).
///
/// # Errors
/// If there are too many experts; if a device failed, or has too little memory.
pub fn z_loss(logits: &Var) -> Result<Var> {
    let device = logits.value().device();
    let mut logs = Tensor::output(device, DType::F32, &[logits.value().row_count()])?;
    let mut loss = Tensor::output(device, DType::F32, &[1])?;
    router::z_loss(logits.value().view(), logs.view_mut(), loss.view_mut())?;
    let kept = logits.clone();
    let [loss] = record(&[logits], [loss], move |grads, [loss]| {
        let Some(seed) = grads.take(loss)? else { return Ok(()) };
        grads.set_by(&kept, |dlogits| {
            router::z_loss_backward(kept.value().view(), logs.view_flat(), seed.view_flat(), dlogits)
        })
    });
    Ok(loss)
}

/// The uses of experts in the order of the experts. With a capacity an expert takes at most capacity · m k / experts of them, in the
/// order of positions, and the others have no result (Switch, section 2.2); 0 is no limit.
///
/// # Errors
/// If there are too many.
pub fn sort(picked: &Picked, router: &Router, experts: usize, capacity: f32) -> Result<Arc<Order>> {
    let uses = picked.view().len();
    let even = f64::from(capacity) * uses as f64 / experts.max(1) as f64;
    let room = if capacity > 0.0 { even as usize } else { usize::MAX };
    Ok(Arc::new(kernel::sort(picked.view(), router.top_k, experts, room)?))
}

/// The feed-forwards of all experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[experts rows d]`, with a gate the rows of the activation, then of what it gates: `2 width`, else `width`.
    pub up: Var,
    /// `[experts d width]`.
    pub down: Var,
    /// The activation.
    pub activation: Function,
    /// Whether the second half of `up` is gated by the activation of the first.
    pub gate: bool,
}

/// y `[.. d]` = Σⱼ weightⱼ expertⱼ(x), over the picked experts of each position. On the CPU, without a tape, a position's result
/// depends on nothing else.
///
/// # Errors
/// If shapes do not fit.
pub fn mixture(x: &Var, order: &Arc<Order>, weights: &Var, experts: &Experts) -> Result<Var> {
    let up = product(order, &gather(order, x)?, &experts.up)?; // [n rows]
    let inner = if experts.gate { glu(experts.activation, &up)? } else { map(experts.activation, &up)? }; // [n width]
    combine(order, weights, &product(order, &inner, &experts.down)?, x.shape())
}

/// The positions of all uses, in the order of experts, `[n d]`.
fn gather(order: &Arc<Order>, x: &Var) -> Result<Var> {
    let mut xs = Tensor::output(x.value().device(), x.value().dtype(), &[order.uses(), x.value().cols()])?;
    kernel::gather(order, x.value().view(), xs.view_mut())?;
    let (order, kept) = (order.clone(), x.without_numbers());
    let [xs] = record(&[x], [xs], move |grads, [xs]| {
        let Some(dxs) = grads.take(xs)? else { return Ok(()) };
        grads.set_by(&kept, |dx| kernel::gather_backward(&order, dxs.view(), dx))
    });
    Ok(xs)
}

/// W_e x of each expert's rows, with x `[n d]` and the matrices `[experts rows d]`.
fn product(order: &Arc<Order>, x: &Var, weight: &Var) -> Result<Var> {
    let &[_, rows, _] = weight.shape() else {
        return Err(Error::Argument(format!("matrices of experts are {:?}", weight.shape())));
    };
    let recorded = x.wants_grad() || weight.wants_grad();
    let mut y = Tensor::output(x.value().device(), x.value().dtype(), &[order.uses(), rows])?;
    kernel::forward(order, x.value().view(), weight.value().view(), y.view_mut(), !recorded)?;
    let kept = weight.wants_grad().then(|| x.saved());
    let inputs = [x, weight];
    let (order, x, weight) = (order.clone(), x.without_numbers(), weight.clone());
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.set_by(&x, |dx| kernel::backward_input(&order, dy.view(), weight.value().view(), dx))?;
        let Some(kept) = kept else { return Ok(()) };
        let x = kept.recall()?;
        grads.add_by(&weight, |dw| kernel::backward_weight(&order, dy.view(), x.value().view(), dw))
    });
    Ok(y)
}

/// y of that shape: the results of each position's uses, weighed.
fn combine(order: &Arc<Order>, weights: &Var, o: &Var, shape: &[usize]) -> Result<Var> {
    let mut y = Tensor::output(o.value().device(), o.value().dtype(), shape)?;
    kernel::combine(order, weights.value().view(), o.value().view(), y.view_mut())?;
    let inputs = [weights, o];
    let (order, weights, o) = (order.clone(), weights.clone(), o.clone());
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        let inputs = (weights.value().view(), o.value().view());
        grads.write([Want::Set(&weights), Want::Set(&o)], |matrices| match matrices {
            [Some(dweights), Some(d_o)] => kernel::combine_backward(&order, inputs, dy.view(), (dweights, d_o)),
            _ => Ok(()),
        })
    });
    Ok(y)
}

/// y `[.. d]` = w x, with one w of `[.. 1]` for each row of x.
///
/// # Errors
/// If they have other numbers of rows.
pub fn weighed(x: &Var, w: &Var) -> Result<Var> {
    let order = Arc::new(kernel::identity(x.value().gpu(), x.value().row_count())?);
    combine(&order, &cast(w, DType::F32)?, x, x.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// golden/positions.json has the z loss of `transformers`, and its gradient.
    #[test]
    fn the_z_loss_is_that_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/positions.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let golden = &golden["z_loss"];
        let values = |name: &str| -> Vec<f32> {
            golden[name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
        };
        let (logits, want) = (values("logits"), values("gradient"));
        let experts = golden["experts"].as_u64().unwrap() as usize;
        let m = logits.len() / experts;
        let logits = Tensor::new(logits, &[m, experts]);
        let loss = z_loss(&logits.clone().into()).unwrap().value().to_vec().unwrap()[0];
        assert!((f64::from(loss) / golden["loss"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{loss}");
        let (mut logs, mut mean, mut got) = (vec![0.0; m], [0.0], vec![0.0; m * experts]);

        let (into, one) = (elapid_kernels::RowsMut::new(&mut logs, m), elapid_kernels::RowsMut::new(&mut mean, 1));
        router::z_loss(logits.view(), into, one).unwrap();
        let rows = elapid_kernels::Rows::new(&logs, 1);
        let seed = elapid_kernels::Rows::new(&[1.0], 1);
        router::z_loss_backward(logits.view(), rows, seed, elapid_kernels::RowsMut::new(&mut got, experts)).unwrap();
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(0.1), "{got} {want}");
        }
    }
}
