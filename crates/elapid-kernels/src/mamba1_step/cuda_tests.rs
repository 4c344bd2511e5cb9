//! Against the operations' loops, one after another in f64.

use std::sync::Arc;

use super::cuda::{Dims, Layer, Model, Step, suits};
use crate::testing::{OnDevice, Random, err_ratio, gpu, rounded, wide};
use crate::{DType, Rows, RowsMut, linear};

/// The parameters of a layer in f64, and its state.
struct Reference {
    norm: Vec<f64>,
    in_proj: Vec<f64>,
    conv: Vec<f64>,
    conv_bias: Vec<f64>,
    x_proj: Vec<f64>,
    dt_proj: Vec<f64>,
    dt_bias: Vec<f64>,
    a_log: Vec<f64>,
    skip: Vec<f64>,
    out_proj: Vec<f64>,
    conv_state: Vec<f64>,
    ssm_state: Vec<f64>,
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let (m, n) = (x.len() / k, w.len() / k);
    let mut y = vec![0.0; m * n];
    linear::naive::forward(Rows::new(x, k), Rows::new(w, k), None, RowsMut::new(&mut y, n));
    y
}

fn norm(x: &[f64], w: &[f64], d: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for row in x.chunks(d) {
        let scale = (row.iter().map(|x| x * x).sum::<f64>() / d as f64 + 1e-5).sqrt().recip();
        y.extend(row.iter().zip(w).map(|(x, w)| x * scale * w));
    }
    y
}

impl Reference {
    fn forward(&mut self, Dims { b, d, ed, n, r, k, .. }: Dims, residual: &mut [f64]) {
        let xz = product(&norm(residual, &self.norm, d), &self.in_proj, d);
        let mut u = vec![0.0; b * ed];
        for m in 0..b {
            for c in 0..ed {
                let window = |j: usize| (m * (k - 1) + j) * ed + c;
                let now = xz[m * 2 * ed + c];
                let mut sum = self.conv_bias[c] + self.conv[c * k + k - 1] * now;
                for j in 0..k - 1 {
                    sum += self.conv[c * k + j] * self.conv_state[window(j)];
                    self.conv_state[window(j)] = if j + 2 < k { self.conv_state[window(j + 1)] } else { now };
                }
                u[m * ed + c] = silu(sum);
            }
        }
        let dbc = product(&u, &self.x_proj, ed);
        let mut y = vec![0.0; b * ed];
        for m in 0..b {
            let dbc = &dbc[m * (r + 2 * n)..][..r + 2 * n];
            let raw = product(&dbc[..r], &self.dt_proj, r);
            for c in 0..ed {
                let (dt, u) = ((raw[c] + self.dt_bias[c]).exp().ln_1p(), u[m * ed + c]);
                let mut sum = self.skip[c] * u;
                for j in 0..n {
                    let h = &mut self.ssm_state[(m * ed + c) * n + j];
                    *h = (-dt * self.a_log[c * n + j].exp()).exp() * *h + dt * dbc[r + j] * u;
                    sum += dbc[r + n + j] * *h;
                }
                y[m * ed + c] = sum * silu(xz[m * 2 * ed + ed + c]);
            }
        }
        for (x, y) in residual.iter_mut().zip(product(&y, &self.out_proj, ed)) {
            *x += y;
        }
    }
}

// Long: a whole model operation by operation, as the paper draws it.
#[test]
fn agrees_with_the_operations() {
    let Some(gpu) = gpu() else { return };
    for (count, b, d, ed, n, r, k, v) in [
        (2, 1, 64, 128, 16, 8, 4, 50),
        (3, 1, 768, 1536, 16, 48, 4, 5001),
        (2, 1, 2048, 4096, 16, 128, 4, 301),
        (1, 1, 2560, 5120, 32, 160, 2, 97),
        (5, 1, 96, 192, 8, 40, 1, 33),
        (2, 1, 1056, 8192, 4, 16, 3, 97),
        (3, 5, 768, 1536, 16, 48, 4, 5001),
        (2, 8, 96, 192, 8, 40, 2, 301),
        (1, 32, 160, 320, 4, 16, 3, 97),
        (2, 13, 256, 512, 32, 16, 1, 4096),
        (8, 32, 64, 128, 4, 8, 4, 97),
    ] {
        let dims = Dims { b, d, ed, n, r, k, v };
        assert!(suits(&gpu, dims), "{dims:?}");
        let mut random = Random::new(1);
        let mut numbers = |len: usize, size: f32, mean: f32| -> Vec<f32> {
            random.normal(len).iter().map(|x| mean + size * x).collect()
        };
        let weight = |x: Vec<f32>, cols: usize| {
            let x = rounded(&x, DType::Bf16);
            (OnDevice::of(gpu, &x, cols, 0, DType::Bf16), wide(&x))
        };
        let vector = |x: Vec<f32>| (OnDevice::of(gpu, &x, x.len().max(1), 0, DType::F32), wide(&x));
        let fan = |inputs: usize| (inputs as f32).powf(-0.5);
        let (mut on_device, mut reference) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let norm = vector(numbers(d, 0.2, 1.0));
            let in_proj = weight(numbers(2 * ed * d, fan(d), 0.0), d);
            let conv = vector(numbers(ed * k, 0.5, 0.0));
            let conv_bias = vector(numbers(ed, 0.3, 0.0));
            let x_proj = weight(numbers((r + 2 * n) * ed, 2.0 * fan(ed), 0.0), ed);
            let dt_proj = weight(numbers(ed * r, fan(r), 0.0), r);
            let dt_bias = vector(numbers(ed, 0.5, -2.0));
            let a_log = vector(numbers(ed * n, 0.5, 0.0));
            let skip = vector(numbers(ed, 0.5, 1.0));
            let out_proj = weight(numbers(d * ed, fan(ed), 0.0), ed);
            let conv_state = vector(numbers(b * (k - 1) * ed, 1.0, 0.0));
            let ssm_state = vector(numbers(b * ed * n, 1.0, 0.0));
            reference.push(Reference {
                norm: norm.1,
                in_proj: in_proj.1,
                conv: conv.1,
                conv_bias: conv_bias.1,
                x_proj: x_proj.1,
                dt_proj: dt_proj.1,
                dt_bias: dt_bias.1,
                a_log: a_log.1,
                skip: skip.1,
                out_proj: out_proj.1,
                conv_state: conv_state.1,
                ssm_state: ssm_state.1,
            });
            on_device.push([
                norm.0,
                in_proj.0,
                conv.0,
                conv_bias.0,
                x_proj.0,
                dt_proj.0,
                dt_bias.0,
                a_log.0,
                skip.0,
                out_proj.0,
                conv_state.0,
                ssm_state.0,
            ]);
        }
        let (embedding, embedding64) = weight(numbers(v * d, 1.0, 0.0), d);
        let (norm_f, norm_f64) = vector(numbers(d, 0.2, 1.0));
        let (head, head64) = weight(numbers(v * d, fan(d), 0.0), d);
        let layers = on_device
            .iter()
            .map(|all| Layer {
                norm: all[0].mat(),
                in_proj: all[1].mat(),
                conv: all[2].mat(),
                conv_bias: Some(all[3].mat()),
                x_proj: all[4].mat(),
                dt_proj: all[5].mat(),
                dt_bias: all[6].mat(),
                a_log: all[7].mat(),
                skip: all[8].mat(),
                out_proj: all[9].mat(),
                conv_state: all[10].mat(),
                ssm_state: all[11].mat(),
            })
            .collect();
        let model = Model { layers, embedding: embedding.mat(), norm: norm_f.mat(), head: head.mat(), eps: 1e-5 };
        let mut tokens: Vec<u32> = (0..b).map(|m| (m * 7919 % v) as u32).collect();
        let ids = Arc::new(gpu.upload(&tokens).unwrap());
        let step = Step::new(gpu, dims, &model, &ids).unwrap();
        for position in 0..3 {
            let mut residual: Vec<f64> =
                tokens.iter().flat_map(|&id| embedding64[id as usize * d..][..d].to_vec()).collect();
            reference.iter_mut().for_each(|layer| layer.forward(dims, &mut residual));
            let want = product(&norm(&residual, &norm_f64, d), &head64, d);
            step.launch().unwrap();
            let got: Vec<f32> = gpu.download(step.logits(), 0, b * v).unwrap();
            let near = |name, want: &[f64], got: &[f32]| {
                let error = err_ratio(want, got);
                assert!(error < 2e-2, "{name} at {position} of {dims:?}: {error:e}");
            };
            near("logits", &want, &got);
            for (layer, all) in reference.iter().zip(&on_device) {
                near("conv state", &layer.conv_state, &all[10].values());
                near("ssm state", &layer.ssm_state, &all[11].values());
            }
            tokens = gpu.download(&ids, 0, b).unwrap();
            for (row, &id) in got.chunks(v).zip(&tokens) {
                let best = (0..v).fold(0, |best, j| if row[j] > row[best] { j } else { best });
                assert_eq!(id as usize, best);
            }
        }
    }
}
