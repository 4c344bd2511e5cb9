//! Operations head by head: block-diagonal products, and a LayerNorm for each head.

use elapid_kernels::{DType, View, layer_norm, linear as kernel};

use crate::autograd::{Var, Want, record};
use crate::{Error, Result, Tensor};

/// y = [W₁ x₁ | W₂ x₂ | …], every W `[heads n k]` block-diagonal: head i reads columns i k to (i + 1) k of its x
/// `[.. heads k]`, and y is `[.. Σ heads n]`.
///
/// On the tape the products are the fastest ones, without it those whose order of sums depends on k alone.
///
/// # Errors
/// If shapes do not fit, or there are no parts; if a device failed, or has too little memory.
pub fn block_linear(parts: &[(Var, Var)]) -> Result<Var> {
    let inputs: Vec<&Var> = parts.iter().flat_map(|(x, weight)| [x, weight]).collect();
    let Some((first, _)) = parts.first() else { return Err(Error::Argument("a product of no parts".into())) };
    let (device, dtype) = (first.value().device(), first.value().dtype());
    let mut shape = first.shape().to_vec();
    *shape.last_mut().unwrap_or(&mut 0) = parts.iter().map(|(_, weight)| weight.value().row_count()).sum();
    let recorded = inputs.iter().any(|x| x.wants_grad());
    let mut y = Tensor::output(device, dtype, &shape)?;
    for block in blocks(parts) {
        let (x, weight, y) = (block.x(), block.weight(), y.view_mut().columns(block.to, block.n));
        match recorded {
            true => kernel::forward(x, weight, None, y),
            false => kernel::forward_invariant(x, weight, None, y),
        }?;
    }
    let kept = parts.to_vec();
    let [y] = record(&inputs, [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        for block in blocks(&kept) {
            let dy = dy.view().columns(block.to, block.n);
            let x = block.part.0.columns(block.head * block.k, block.k);
            grads.accumulate(&x, |dx, adds| kernel::backward_input(dy, block.weight(), dx, adds))?;
            grads.add_by(&block.part.1, |dw| {
                kernel::backward_weight(dy, block.x(), dw.rows_range(block.head * block.n, block.n))
            })?;
        }
        Ok(())
    });
    Ok(y)
}

/// One head of one matrix.
struct Block<'a> {
    part: &'a (Var, Var),
    head: usize,
    n: usize,
    k: usize,
    /// First column in y.
    to: usize,
}

impl<'a> Block<'a> {
    fn x(&self) -> View<'a> {
        self.part.0.value().view().columns(self.head * self.k, self.k)
    }

    fn weight(&self) -> View<'a> {
        self.part.1.value().view().rows_range(self.head * self.n, self.n)
    }
}

fn blocks(parts: &[(Var, Var)]) -> impl Iterator<Item = Block<'_>> {
    let mut to = 0;
    parts.iter().flat_map(move |part| {
        let first = to;
        let (rows, k) = (part.1.value().row_count(), part.1.value().cols());
        to += rows;
        let heads = part.1.shape().first().copied().unwrap_or(1).max(1);
        let n = rows / heads;
        (0..heads).map(move |head| Block { part, head, n, k, to: first + head * n })
    })
}

/// LayerNorm of the columns of each head, y = (x - mean) / sqrt(variance + eps) · weight, x `[.. d]`, weight `[d]` (the
/// group norm of xLSTM).
///
/// # Errors
/// If shapes do not fit; if a device failed, or has too little memory.
pub fn head_norm(x: &Var, weight: &Var, heads: usize, eps: f32) -> Result<Var> {
    let (device, m, width) = (x.value().device(), x.value().row_count(), x.value().cols() / heads.max(1));
    let part = move |head: usize| (head * width, width);
    let mut y = Tensor::output(device, x.value().dtype(), x.shape())?;
    let mut statistics = Vec::with_capacity(heads);
    for head in 0..heads {
        let (from, cols) = part(head);
        let mut of_head = Tensor::output(device, DType::F32, &[m, 2])?;
        let args = layer_norm::Args {
            x: x.value().view().columns(from, cols),
            residual: None,
            weight: Some(weight.value().view_flat().columns(from, cols)),
            bias: None,
            eps,
        };
        layer_norm::forward(args, y.view_mut().columns(from, cols), None, of_head.view_mut())?;
        statistics.push(of_head);
    }
    let (x, weight) = (x.clone(), weight.clone());
    let [y] = record(&[&x.clone(), &weight.clone()], [y], move |grads, [y]| {
        let Some(dy) = grads.take(y)? else { return Ok(()) };
        grads.write([Want::Set(&x), Want::Add(&weight)], |matrices| {
            let [Some(mut dx), Some(mut dweight)] = matrices else { return Ok(()) };
            for (head, statistics) in statistics.iter().enumerate() {
                let (from, cols) = part(head);
                let saved = layer_norm::Saved {
                    s: x.value().view().columns(from, cols),
                    weight: Some(weight.value().view_flat().columns(from, cols)),
                    statistics: statistics.view_flat(),
                    factors: (1.0, 1.0),
                };
                let grads = layer_norm::Grads {
                    dx: dx.reborrow().columns(from, cols),
                    dresidual: None,
                    dweight: Some(dweight.reborrow().columns(from, cols)),
                    dbias: None,
                };
                layer_norm::backward(saved, dy.view().columns(from, cols), None, grads)?;
            }
            Ok(())
        })
    });
    Ok(y)
}
