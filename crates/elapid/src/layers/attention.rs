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
use crate::ops::{self, Mask, Rotary, Scaling, attention, rotate_columns};
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
        /// Of the window, every so many: distances 0, r, ..., (window - 1) r (Ding et al. 2023).
        dilation: Size = Size::new(1),
        /// Whether each sees beside the window all positions at multiples of its length (Child et al. 2019).
        strided: bool = false,
        /// First positions of a document that all see beside the window (Xiao et al. 2024).
        sinks: Count = Count::new(0),
        /// Positions that all see beside the window, and that see all before them (Beltagy et al. 2020).
        globals: Vec<u32> = Vec::new(),
        /// Rotary positions: "none", "halves" (column i with i + r/2, as Llama), "pairs" (2i with 2i + 1, as the paper).
        rope: Rope = Rope::Halves,
        /// Base of the rotary frequencies.
        rope_base: f32 = 10000.0,
        /// Number of leading columns per head that are rotated; "auto" is all.
        rotary_dim: Auto<Count> = Auto::Auto,
        /// Change of the frequencies for texts longer than those of training: "none", "linear", "ntk", "llama3", "yarn".
        rope_scaling: RopeScaling = RopeScaling::None,
        /// What it divides low frequencies by.
        rope_factor: f32 = 1.0,
        /// Positions in training, for llama3 and yarn, ...
        rope_original: Count = Count::new(0),
        /// ... over which columns that turn fewer times than this are low, ...
        rope_slow: f32 = 1.0,
        /// ... and those that turn more often than this stay; "auto": 4 for llama3, 32 for yarn.
        rope_fast: Auto<f32> = Auto::Auto,
        /// Whether the ramp of yarn begins and ends at whole columns.
        rope_truncate: bool = true,
        /// Factor of the rotated columns; "auto": 0.1 ln(rope_factor) + 1 for yarn, else 1.
        rope_attention_factor: Auto<f32> = Auto::Auto,
        /// Whether scores fall with distance, by 2^(-8 (h + 1) / heads) in head h (ALiBi, Press et al. 2022).
        alibi: bool = false,
        /// Factor of the products of queries and keys; "auto": head_dim^-1/2.
        softmax_scale: Auto<f32> = Auto::Auto,
        /// Scores become c tanh(scores / c); 0 leaves them alone.
        softcap: f32 = 0.0,
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

/// How rotary frequencies are changed; see [`Scaling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names of methods")]
pub enum RopeScaling {
    None,
    Linear,
    Ntk,
    Llama3,
    Yarn,
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
    out_proj: Linear,
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

    fn rope_fast(&self) -> f32 {
        self.rope_fast.or(if self.rope_scaling == RopeScaling::Yarn { 32.0 } else { 4.0 })
    }

    fn rope_attention_factor(&self) -> f32 {
        self.rope_attention_factor.or(self.scaling().attention_factor() as f32)
    }

    fn scaling(&self) -> Scaling {
        let [factor, slow, fast] = [self.rope_factor, self.rope_slow, self.rope_fast()].map(f64::from);
        let original = self.rope_original.get() as f64;
        match self.rope_scaling {
            RopeScaling::None => Scaling::None,
            RopeScaling::Linear => Scaling::Linear(factor),
            RopeScaling::Ntk => Scaling::Ntk(factor),
            RopeScaling::Llama3 => Scaling::Llama3 { factor, low: slow, high: fast, original },
            RopeScaling::Yarn => Scaling::Yarn { factor, fast, slow, original, truncate: self.rope_truncate },
        }
    }

    /// The same settings with what "auto" stands for.
    pub(super) fn resolved(&self, at: &At<'_>) -> Self {
        let (c, turned) = (self.head_dim(at.d_model), self.rope != Rope::None);
        Self {
            kv_heads: Auto::Is(Size::new(self.kv_heads())),
            head_dim: Auto::Is(Size::new(c)),
            rope_base: if turned { self.rope_base } else { 0.0 },
            rope_fast: Auto::Is(self.rope_fast()),
            rope_attention_factor: Auto::Is(self.rope_attention_factor()),
            rotary_dim: Auto::Is(Count::new(if turned { self.rotary_dim(at.d_model) } else { 0 })),
            softmax_scale: Auto::Is(self.softmax_scale.or((c as f32).powf(-0.5))),
            ..self.clone()
        }
    }

    pub(super) fn check(&self, at: &At<'_>) -> Result<(), Problem> {
        let (heads, kv_heads, c) = (self.heads.get(), self.kv_heads(), self.head_dim(at.d_model));
        if !heads.is_multiple_of(kv_heads) {
            return Err(Problem::value("kv_heads", format!("a divisor of heads, which is {heads}"), kv_heads));
        }
        if self.head_dim == Auto::Auto && !at.d_model.is_multiple_of(heads) {
            return Err(Problem::value("heads", format!("a divisor of d_model, which is {}", at.d_model), heads));
        }
        let beside = self.dilation.get() > 1 || self.strided || self.sinks.get() > 0 || !self.globals.is_empty();
        if self.window.get() == 0 && beside {
            let wanted =
                "1 or more, as dilation, strided, sinks and globals say what is seen of a window and beside it";
            return Err(Problem::value("window", wanted, 0));
        }
        Problem::unless_not_negative("softcap", self.softcap)?;
        self.check_scaling()?;
        let rotary = self.rotary_dim(at.d_model);
        if self.rope != Rope::None && (rotary > c || !rotary.is_multiple_of(2)) {
            return Err(Problem::value("rotary_dim", format!("an even number up to head_dim, which is {c}"), rotary));
        }
        Ok(())
    }

    fn check_scaling(&self) -> Result<(), Problem> {
        for (field, x) in [
            ("rope_factor", self.rope_factor),
            ("rope_slow", self.rope_slow),
            ("rope_fast", self.rope_fast()),
            ("rope_attention_factor", self.rope_attention_factor()),
        ] {
            Problem::unless_positive(field, x)?;
        }
        if !matches!(self.rope_scaling, RopeScaling::Llama3 | RopeScaling::Yarn) {
            return Ok(());
        }
        if self.rope_original.get() == 0 {
            return Err(Problem::value("rope_original", "the number of positions in training", 0));
        }
        if self.rope_fast() <= self.rope_slow {
            let wanted = format!("more than rope_slow, which is {}", self.rope_slow);
            return Err(Problem::value("rope_fast", wanted, self.rope_fast()));
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
                mask: Mask {
                    causal: true,
                    window: self.window.get(),
                    dilation: self.dilation.get(),
                    strided: self.strided,
                    sinks: self.sinks.get(),
                    globals: self.globals.iter().map(|&at| at as usize).collect(),
                },
                softcap: self.softcap,
                alibi: self.alibi,
            },
            rotary: pairs.map(|pairs| Rotary {
                factor: f64::from(self.rope_attention_factor()),
                ..Rotary::new(c, self.rotary_dim(d), f64::from(self.rope_base), self.scaling(), pairs)
            }),
            qkv: p.linear("qkv", [(h + 2 * g) * c, d], &Init::fan_in(d), Bias::zeros(self.qkv_bias))?,
            out_proj: p.linear("out_proj", [d, h * c], &at.into_stream(h * c), Bias::zeros(self.out_bias))?,
        })
    }

    /// For the tests that every layer runs.
    pub(super) fn small() -> Vec<Self> {
        let plain = Self { heads: Size::new(4), ..Self::default() };
        let grouped = Self { kv_heads: Auto::Is(Size::new(2)), rope: Rope::Pairs, qkv_bias: true, ..plain.clone() };
        let window = Self { window: Count::new(5), rotary_dim: Auto::Is(Count::new(2)), ..plain.clone() };
        let sparse = Self { window: Count::new(3), dilation: Size::new(2), sinks: Count::new(2), ..plain.clone() };
        let global = Self { window: Count::new(4), strided: true, globals: vec![0, 33], ..plain.clone() };
        let capped = Self { rope: Rope::None, alibi: true, softcap: 2.0, ..plain.clone() };
        let scaled =
            Self { rope_scaling: RopeScaling::Yarn, rope_factor: 4.0, rope_original: Count::new(16), ..plain.clone() };
        vec![plain, grouped, window, sparse, global, capped, scaled]
    }
}

impl Layer for Attention {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let [mut past_k, mut past_v] = state.into_caches()?;
        let (hc, gc) = (self.sizes.heads * self.head_dim, self.sizes.kv_heads * self.head_dim);
        let qkv = self.qkv.forward(cx, x)?; // [b l (h+2g)c]
        let qkv = match &self.rotary {
            None => qkv,
            Some(rotary) => rotate_columns(qkv, hc + gc, rotary, &cx.layout)?, // q and k
        };
        let q = qkv.columns(0, hc); // [b l hc]
        let k = qkv.columns(hc, gc); // [b l gc]
        let v = qkv.columns(hc + gc, gc); // [b l gc]
        let y = attention(&q, &k, &v, (&past_k, &past_v), &self.sizes, &cx.layout)?; // [b l hc]
        past_k.push(&k, &cx.layout)?;
        past_v.push(&v, &cx.layout)?;
        let state = LayerState::new(vec![Slot::Cache(past_k), Slot::Cache(past_v)]);
        Ok((self.out_proj.forward(cx, &y)?, state)) // [b l d]
    }

    fn state(&self) -> Vec<StateSpec> {
        let groups = self.sizes.kv_heads;
        let (window, sinks) = match self.sizes.mask.reach() {
            None => (0, 0),
            Some(reach) => (reach, self.sizes.mask.sinks),
        };
        let spec = CacheSpec { window, sinks, ..CacheSpec::growing(groups * self.head_dim, groups) };
        vec![StateSpec::cache("k", spec.clone()), StateSpec::cache("v", spec)]
    }

    fn cost(&self, context: u64) -> Cost {
        let (d, c) = (self.d_model as u64, self.head_dim as u64);
        let (h, g) = (self.sizes.heads as u64, self.sizes.kv_heads as u64);
        let mask = &self.sizes.mask;
        let (seen, window) = (context + 1, mask.window as u64);
        let keys = match window {
            0 => seen,
            _ => {
                let beside = mask.sinks as u64 + mask.globals.len() as u64;
                let strides = if mask.strided { context / window } else { 0 };
                seen.min(window.min(seen.div_ceil(mask.dilation as u64)) + beside + strides)
            }
        };
        let kept = mask.reach().map_or(seen, |reach| seen.min(reach as u64 + mask.sinks as u64));
        let params = d * (h + 2 * g) * c + h * c * d;
        let biases = self.qkv.bias().map_or(0, |_| (h + 2 * g) * c) + self.out_proj.bias().map_or(0, |_| d);
        // A key of a head: its product, exponential, and what it adds to the output.
        Cost {
            flops: 2 * params + biases + h * keys * (4 * c + 4),
            params: params + biases,
            state: 2 * g * c * kept,
            kept: (h + 2 * g) * c + h * c,
        }
    }
}
