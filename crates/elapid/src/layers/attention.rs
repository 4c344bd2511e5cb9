//! Causal softmax attention (Vaswani et al. 2017, section 3.2), with heads of keys shared by groups of heads of queries
//! (Ainslie et al. 2023), a sliding window (Beltagy et al. 2020) and rotary positions (Su et al. 2021).
//!
//! | here | |
//! |---|---|
//! | `b l d` | batch, positions, width of the stream |
//! | `h` | heads of queries (`heads`) |
//! | `g` | heads of keys and values (`kv_heads`) |
//! | `c` | columns of a head (`head_dim`) |

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer};
use crate::linear::Linear;
use crate::ops::{self, Rotary, attention, rotate};
use crate::params::{Bias, Init, ParamBuilder};
use crate::pass::Cx;
use crate::settings::{Auto, Count, Problem, Size};
use crate::state::{CacheSpec, LayerState, Slot, StateSpec};

crate::settings! {
    /// Causal softmax attention.
    pub struct Settings {
        /// Number of query heads.
        heads: Size = Size::new(8),
        /// Number of key and value heads, each shared by heads / kv_heads query heads; "auto" is heads.
        kv_heads: Auto<Size> = Auto::Auto,
        /// Columns per head; "auto" is d_model / heads.
        head_dim: Auto<Size> = Auto::Auto,
        /// Sliding window: number of positions that each position sees, including itself. 0: all before it.
        window: Count = Count::new(0),
        /// Rotary positions: "none", "halves" (column i with i + r/2, as Llama), "pairs" (2i with 2i + 1, as the paper).
        rope: Rope = Rope::Halves,
        /// Base of the rotary frequencies.
        rope_base: f32 = 10000.0,
        /// Number of leading columns per head that are rotated; "auto" is all.
        rotary_dim: Auto<Count> = Auto::Auto,
        /// Factor of the products of queries and keys; "auto" is head_dim^-1/2.
        softmax_scale: Auto<f32> = Auto::Auto,
        /// Whether the projections of queries, keys and values have biases.
        qkv_bias: bool = false,
        /// Whether the output projection has one.
        out_bias: bool = false,
    }
}

/// Which columns rotary positions rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rope {
    /// No rotary positions.
    None,
    /// Column i with column i + r/2.
    Halves,
    /// Column 2i with column 2i + 1.
    Pairs,
}

/// The parameters of one attention layer.
#[derive(Debug)]
pub struct Attention {
    d_model: usize,
    head_dim: usize,
    sizes: ops::Attention,
    rotary: Option<Rotary>,
    /// Projection to queries, keys and values, packed, `[(h + 2g) c, d]`.
    qkv: Linear,
    /// `[d h c]`.
    out: Linear,
}

impl Settings {
    fn kv_heads(&self) -> usize {
        self.kv_heads.or(self.heads).get()
    }

    fn head_dim(&self, d_model: usize) -> usize {
        self.head_dim.or(Size::new(d_model / self.heads.get())).get()
    }

    fn rotary_dim(&self, d_model: usize) -> usize {
        self.rotary_dim.or(Count::new(self.head_dim(d_model))).get()
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let (heads, kv_heads, c) = (self.heads.get(), self.kv_heads(), self.head_dim(at.d_model));
        if !heads.is_multiple_of(kv_heads) {
            return Err(Problem::value("kv_heads", format!("a divisor of heads, which is {heads}"), kv_heads));
        }
        if self.head_dim == Auto::Auto && !at.d_model.is_multiple_of(heads) {
            return Err(Problem::value("heads", format!("a divisor of d_model, which is {}", at.d_model), heads));
        }
        let rotary = self.rotary_dim(at.d_model);
        if self.rope != Rope::None && (rotary > c || !rotary.is_multiple_of(2)) {
            return Err(Problem::value("rotary_dim", format!("an even number up to head_dim, which is {c}"), rotary));
        }
        Ok(())
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Attention> {
        let (d, h, g, c) = (at.d_model, self.heads.get(), self.kv_heads(), self.head_dim(at.d_model));
        let pairs = match self.rope {
            Rope::None => None,
            Rope::Halves => Some(ops::Pairs::Halves),
            Rope::Pairs => Some(ops::Pairs::Interleaved),
        };
        Ok(Attention {
            d_model: d,
            head_dim: c,
            sizes: ops::Attention {
                heads: h,
                kv_heads: g,
                scale: self.softmax_scale.or((c as f32).powf(-0.5)),
                window: self.window.get(),
            },
            rotary: pairs.map(|pairs| Rotary::new(c, self.rotary_dim(d), f64::from(self.rope_base), pairs)),
            qkv: p.linear("qkv", [(h + 2 * g) * c, d], &Init::fan_in(d), Bias::zeros(self.qkv_bias))?,
            out: p.linear("out", [d, h * c], &at.into_stream(h * c), Bias::zeros(self.out_bias))?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let plain = Self { heads: Size::new(4), ..Self::default() };
        let grouped = Self { kv_heads: Auto::Is(Size::new(2)), rope: Rope::Pairs, qkv_bias: true, ..plain.clone() };
        let window = Self { window: Count::new(5), rotary_dim: Auto::Is(Count::new(2)), ..plain.clone() };
        vec![plain, grouped, window]
    }
}

impl Layer for Attention {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [mut past_k, mut past_v] = state.into_caches()?;
        let (hc, gc) = (self.sizes.heads * self.head_dim, self.sizes.kv_heads * self.head_dim);
        let qkv = self.qkv.forward(cx, x)?; // [b l (h+2g)c]
        let turned = |x: Var| self.rotary.as_ref().map_or(Ok(x.clone()), |rotary| rotate(&x, rotary, &cx.layout));
        let q = turned(qkv.columns(0, hc))?; // [b l hc]
        let k = turned(qkv.columns(hc, gc))?; // [b l gc]
        let v = qkv.columns(hc + gc, gc); // [b l gc]
        let y = attention(&q, &k, &v, (&past_k, &past_v), self.sizes, &cx.layout)?; // [b l hc]
        past_k.push(&k, &cx.layout)?;
        past_v.push(&v, &cx.layout)?;
        let state = LayerState::new(vec![Slot::Cache(past_k), Slot::Cache(past_v)]);
        Ok((self.out.forward(cx, &y)?, state)) // [b l d]
    }

    fn state(&self) -> Vec<StateSpec> {
        let groups = self.sizes.kv_heads;
        let spec = CacheSpec { window: self.sizes.window, ..CacheSpec::growing(groups * self.head_dim, groups) };
        vec![StateSpec::cache("k", spec.clone()), StateSpec::cache("v", spec)]
    }

    fn cost(&self, context: u64) -> Cost {
        let (d, c) = (self.d_model as u64, self.head_dim as u64);
        let (h, g) = (self.sizes.heads as u64, self.sizes.kv_heads as u64);
        let keys = match self.sizes.window as u64 {
            0 => context + 1,
            window => window.min(context + 1),
        };
        let params = d * (h + 2 * g) * c + h * c * d;
        let biases = self.qkv.bias().map_or(0, |_| (h + 2 * g) * c) + self.out.bias().map_or(0, |_| d);
        // Per key and head: its product, its exponential, and its contribution to the output.
        Cost {
            flops: 2 * params + biases + h * keys * (4 * c + 4),
            params: params + biases,
            state: 2 * g * c * keys,
            kept: (h + 2 * g) * c + h * c,
        }
    }
}
