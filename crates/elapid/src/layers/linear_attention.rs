//! Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236): softmax's exp(qᵀk) replaced by φ(q)ᵀφ(k), so that the past is one
//! matrix for each head: S_t = S_{t-1} + φ(k_t) v_tᵀ, y_t = S_tᵀ φ(q_t), perhaps divided by φ(q_t)ᵀ Σ φ(k) + ε. With the Taylor map
//! it is that of Based (Arora et al. 2024, arXiv 2402.18668).
//!
//! The official code is `fla/layers/linear_attn.py` and `based/models/mixers/linear_attention.py`.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::linear::Linear;
use crate::ops::{
    Decay, Function, GroupNorm, LinearAttentionArgs, contiguous, gated, group_norm, linear_attention, map,
    taylor_features, taylor_map,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Problem, Size};
use crate::state::{LayerState, StateSpec};

crate::settings! {
    /// Linear attention.
    pub struct Settings {
        /// Number of heads.
        heads: Size = Size::new(4),
        /// Columns per head of queries and keys before the feature map; "auto" is d_model / heads.
        key_dim: Auto<Size> = Auto::Auto,
        /// Columns per head of values; "auto" is d_model / heads.
        value_dim: Auto<Size> = Auto::Auto,
        /// Feature map of queries and keys: "elu" (elu(x) + 1), "relu", "identity", "taylor" (Based: 1 + s + s²/2 for the product s),
        /// "product" (of two learned projections of a head, the same for all heads).
        feature_map: FeatureMap = FeatureMap::Elu,
        /// Whether the output is divided by the sum of the products, ...
        normalise: bool = true,
        /// ... and what is added to it.
        eps: f32 = 1e-6,
        /// Factor of queries; "auto": key_dim^-1/2, for "taylor" 1, which has it inside.
        query_scale: Auto<f32> = Auto::Auto,
        /// Norm of each head's output: "none", "rms" (with a weight for its columns).
        output_norm: OutputNorm = OutputNorm::None,
        /// Its epsilon; "auto" is the model's norm_eps.
        norm_eps: Auto<f32> = Auto::Auto,
    }
}

/// Feature maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureMap {
    /// elu(x) + 1.
    Elu,
    /// max(x, 0).
    Relu,
    /// x.
    Identity,
    /// The second-order expansion of the exponential.
    Taylor,
    /// (W₁ x + b₁) ⊙ (W₂ x + b₂), head by head.
    Product,
}

/// Norms of a head's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputNorm {
    /// None.
    None,
    /// RMS, with a weight.
    Rms,
}

/// The parameters of one layer.
#[derive(Debug)]
pub struct LinearAttention {
    d_model: usize,
    heads: usize,
    key: usize,
    value: usize,
    map: FeatureMap,
    /// `[key key]` and biases: both projections of queries, then of keys.
    products: Option<[[Linear; 2]; 2]>,
    normaliser: Option<f32>,
    scale: f32,
    /// `[heads (2 key + value) d]`: q, k, v.
    qkv: Linear,
    /// `[value]`, and its epsilon.
    norm: Option<(ParamId, f32)>,
    out_proj: Linear,
}

impl Settings {
    fn dims(&self, d_model: usize) -> (usize, usize) {
        let auto = Size::new((d_model / self.heads.get()).max(1));
        (self.key_dim.or(auto).get(), self.value_dim.or(auto).get())
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        let (key, value) = self.dims(at.d_model);
        let normed = self.output_norm == OutputNorm::Rms;
        Self {
            key_dim: Auto::Is(Size::new(key)),
            value_dim: Auto::Is(Size::new(value)),
            eps: if self.normalise { self.eps } else { 0.0 },
            query_scale: Auto::Is(self.scale(key)),
            norm_eps: Auto::Is(if normed { self.norm_eps.or(at.norm_eps) } else { 0.0 }),
            ..self.clone()
        }
    }

    fn scale(&self, key: usize) -> f32 {
        let auto = if self.feature_map == FeatureMap::Taylor { 1.0 } else { (key as f32).powf(-0.5) };
        self.query_scale.or(auto)
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let (key, _) = self.dims(at.d_model);
        if self.feature_map == FeatureMap::Taylor && key > 64 {
            return Err(Problem::value(
                "key_dim",
                "1 to 64 for the Taylor map, which has some key_dim² / 2 features",
                key,
            ));
        }
        Problem::unless_not_negative("eps", self.eps)?;
        Problem::unless_not_negative("norm_eps", self.norm_eps.or(0.0))?;
        Problem::unless_positive("query_scale", self.scale(key))
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<LinearAttention> {
        let (d, heads, (key, value)) = (at.d_model, self.heads.get(), self.dims(at.d_model));
        let norm = match self.output_norm {
            OutputNorm::None => None,
            OutputNorm::Rms => {
                let weight = p.param("norm.weight", &[value], &Init::Constant(1.0), Traits::VECTOR)?;
                Some((weight, self.norm_eps.or(at.norm_eps)))
            }
        };
        let mut product = |name: &str| -> Result<[Linear; 2]> {
            let mut one = |layer: &str| {
                let init = Init::fan_in(key);
                p.linear(&format!("{name}.{layer}"), [key, key], &init, Bias::Yes(init.clone()))
            };
            Ok([one("layer1")?, one("layer2")?])
        };
        let products = match self.feature_map {
            FeatureMap::Product => Some([product("q_map")?, product("k_map")?]),
            _ => None,
        };
        Ok(LinearAttention {
            d_model: d,
            heads,
            key,
            value,
            map: self.feature_map,
            products,
            normaliser: self.normalise.then_some(self.eps),
            scale: self.scale(key),
            qkv: p.linear("qkv", [heads * (2 * key + value), d], &Init::fan_in(d), Bias::No)?,
            norm,
            out_proj: p.linear("out_proj", [d, heads * value], &at.into_stream(heads * value), Bias::No)?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let plain = Self { heads: Size::new(2), ..Self::default() };
        let normed = Self {
            feature_map: FeatureMap::Identity,
            normalise: false,
            output_norm: OutputNorm::Rms,
            norm_eps: Auto::Is(0.1),
            ..plain.clone()
        };
        let taylor = Self {
            feature_map: FeatureMap::Taylor,
            key_dim: Auto::Is(Size::new(3)),
            value_dim: Auto::Is(Size::new(5)),
            ..plain.clone()
        };
        let product = Self { feature_map: FeatureMap::Product, value_dim: Auto::Is(Size::new(5)), ..normed.clone() };
        vec![plain, normed, taylor, product]
    }
}

impl LinearAttention {
    /// Rows of a head's state.
    fn features(&self) -> usize {
        if self.map == FeatureMap::Taylor { taylor_features(self.key) } else { self.key }
    }

    /// φ of queries (0) or keys (1) `[b l heads·key]`.
    fn mapped(&self, cx: &Cx, x: &Var, of: usize) -> Result<Var> {
        if let Some(products) = &self.products {
            let heads = contiguous(x)?.reshape(&[x.value().len() / self.key, self.key]);
            let [a, b] = &products[of];
            let y = gated(Function::Identity, &a.forward(cx, &heads)?, &b.forward(cx, &heads)?)?;
            return Ok(y.reshape(x.shape()));
        }
        match self.map {
            FeatureMap::Elu => map(Function::EluPlusOne, x),
            FeatureMap::Relu => map(Function::Relu, x),
            FeatureMap::Identity | FeatureMap::Product => Ok(x.clone()),
            FeatureMap::Taylor => taylor_map(x, self.key),
        }
    }
}

impl Layer for LinearAttention {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [initial] = state.into_fixed()?; // [b h f v], with a normaliser [b h f v+1]
        let (key, value) = (self.heads * self.key, self.heads * self.value);
        let qkv = self.qkv.forward(cx, x)?; // [b l h(2k+v)]
        let args = LinearAttentionArgs {
            q: self.mapped(cx, &qkv.columns(0, key), 0)?,
            k: self.mapped(cx, &qkv.columns(key, key), 1)?,
            v: qkv.columns(2 * key, value),
            groups: self.heads,
            heads: self.heads,
            scale: self.scale,
            decay: Decay::None,
            write: None,
            bonus: None,
            skip: None,
            normaliser: self.normaliser,
            initial,
            in_place: cx.in_place(),
        };
        let (y, last) = linear_attention(args, &cx.layout)?; // [b l hv]
        let y = match self.norm {
            None => y,
            Some((weight, eps)) => {
                let (weight, bias) = (Some(cx.param(weight)), None);
                group_norm(&y, GroupNorm { gate: None, groups: self.heads, centred: false, weight, bias, eps })?
            }
        };
        Ok((self.out_proj.forward(cx, &y)?, LayerState::of([last]))) // [b l d]
    }

    fn state(&self) -> Vec<StateSpec> {
        let columns = self.value + usize::from(self.normaliser.is_some());
        vec![StateSpec::fixed("ssm", &[self.heads, self.features(), columns])]
    }

    fn cost(&self, _context: u64) -> Cost {
        let [d, h, key, value, f] = [self.d_model, self.heads, self.key, self.value, self.features()].map(|x| x as u64);
        let columns = value + u64::from(self.normaliser.is_some());
        let products = d * h * (2 * key + value) + d * h * value;
        let norm = self.norm.map_or(0, |_| value);
        let learned = self.products.as_ref().map_or(0, |_| 4 * (key * key + key));
        Cost {
            // A write and a read of each element of the state, the feature maps, the normaliser and the norm.
            flops: 2 * products + 2 * h * learned + 4 * h * f * columns + 4 * h * f + 2 * h * value + 4 * h * norm,
            params: products + norm + learned,
            state: h * f * columns,
            // [q k v], their features, y before and after the norm; a state every 64 positions.
            kept: h * (2 * key + 2 * f + 3 * value + if learned > 0 { 6 * key } else { 0 }) + h * f * columns / 64,
        }
    }

    fn promises(&self) -> Promises {
        Promises { split: Split::Rounded, ..Promises::ALL }
    }
}
