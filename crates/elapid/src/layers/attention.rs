//! Softmax attention (Vaswani et al. 2017, section 3.2), causal or of all positions, with heads of keys shared by groups of heads of queries
//! (Ainslie et al. 2023), a sliding window (Beltagy et al. 2020) and rotary positions (Su et al. 2021).
//!
//! | here | |
//! |---|---|
//! | `b l d` | batch, positions, width of the stream |
//! | `h` | heads of queries (`heads`) |
//! | `g` | heads of keys and values (`kv_heads`) |
//! | `c` | columns of a head of queries and keys (`head_dim`) |
//! | `v` | columns of a head of values (`value_dim`) |
//!
//! With `sink_positions` "cache" a key of the window has the distance t - s, and sink s the distance min(t, C) - s with C = sinks +
//! window - 1, as if the cache were renumbered at every step. Keys stay rotated by their own positions, as both distances are
//! differences; queries are rotated twice, and a head has two halves: the first meets keys of the window, the second sinks.
//!
//! Queries and keys may be normed before their positions are put in (QK-norm, Dehghani et al. 2023, section 2): by head, one
//! weight for all heads (Qwen3, Gemma 3), or all heads together (OLMo 2).

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::autograd::Var;
use crate::layer::{At, Cost, Layer, Promises, Split};
use crate::linear::Linear;
use crate::ops::{
    self, Halves, Mask, NormKind, Rotary, Scaling, attention, causal_conv1d, rotate, rotate_columns, two_halves,
};
use crate::params::{Bias, Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::settings::{Auto, Count, Problem, Size};
use crate::stack::Norm;
use crate::state::{Cache, CacheSpec, LayerState, Slot, StateSpec};

crate::settings! {
    /// Softmax attention.
    pub struct Settings {
        /// Number of query heads.
        heads: Size = Size::new(8),
        /// Number of key and value heads, each shared by heads / kv_heads query heads; "auto" is heads.
        kv_heads: Auto<Size> = Auto::Auto,
        /// Columns per head; "auto" is d_model / heads.
        head_dim: Auto<Size> = Auto::Auto,
        /// Columns per head of values; "auto" is head_dim.
        value_dim: Auto<Size> = Auto::Auto,
        /// Norm of queries and keys: "none", "rms", "rms1", "layer", "layer-no-bias".
        qk_norm: NormKind = NormKind::None,
        /// What a norm of queries and keys is over: "head" (each alone, with one weight), "all" (all heads together).
        qk_norm_over: Over = Over::Head,
        /// Taps of a causal convolution of queries, keys and values, including the current position, before positions are put in (the
        /// attention of Mamba-2's hybrids). 0: none.
        d_conv: Count = Count::new(0),
        /// Whether positions see none after them. Without it, distances of masks count in both directions, and a model can
        /// neither generate nor read a sequence in parts.
        causal: bool = true,
        /// Sliding window: number of positions that each position sees, including itself. 0: all.
        window: Count = Count::new(0),
        /// Of the window, every so many: distances 0, r, ..., (window - 1) r (Ding et al. 2023).
        dilation: Size = Size::new(1),
        /// Whether each sees beside the window all positions at multiples of its length (Child et al. 2019).
        strided: bool = false,
        /// First positions of a document that all see beside the window (Xiao et al. 2024).
        sinks: Count = Count::new(0),
        /// Positions of sinks: "stream" (those of the document), "cache" (those in a rolling cache of sinks + window - 1 positions, so
        /// that a distance never exceeds it: StreamingLLM, Xiao et al. 2024).
        sink_positions: SinkPositions = SinkPositions::Stream,
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
        /// xPos (Sun et al. 2022): in pair i of r rotated columns products fall with the distance n by ((2i / r + 0.4) / 1.4)^(n /
        /// xpos_base); the paper has 512. Up to 60 xpos_base positions of a document. 0: they do not fall.
        xpos_base: f32 = 0.0,
        /// Whether scores fall with distance, by 2^(-8 (h + 1) / heads) in head h (ALiBi, Press et al. 2022).
        alibi: bool = false,
        /// Factor of the products of queries and keys; "auto": head_dim^-1/2.
        softmax_scale: Auto<f32> = Auto::Auto,
        /// Scores become c tanh(scores / c); 0 leaves them alone.
        softcap: f32 = 0.0,
        /// Whether each head has a learned logit that takes part in the softmax's sum and in nothing else, so that a head can leave
        /// a position alone (gpt-oss; Xiao et al. 2024 learn a key).
        sink_logits: bool = false,
        /// Whether the projections of queries, keys and values have biases.
        qkv_bias: bool = false,
        /// Whether the output projection has one.
        out_bias: bool = false,
    }
}

/// From where distances to the sinks are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkPositions {
    /// From the position in the document.
    Stream,
    /// From the position in the cache, once that is full.
    Cache,
}

/// What a norm of queries and keys is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Each head.
    Head,
    /// All heads together.
    All,
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
    value_dim: usize,
    sizes: ops::Attention,
    /// Positions of queries and of keys.
    rotary: Option<[Rotary; 2]>,
    /// Of queries that meet sinks, where those have positions in the cache.
    to_sinks: Option<Rotary>,
    /// Norms of queries and of keys.
    norms: Option<[Norm; 2]>,
    /// A logit of each head, `[h]`.
    sinks: Option<ParamId>,
    /// Taps `[(h + g) c + g v, 1, k]` and biases.
    conv: Option<(ParamId, ParamId, usize)>,
    /// Projection to queries, keys and values, packed, `[(h + g) c + g v, d]`.
    qkv: Linear,
    /// `[d h v]`.
    out_proj: Linear,
}

impl Settings {
    fn kv_heads(&self) -> usize {
        self.kv_heads.or(self.heads).get()
    }

    fn head_dim(&self, d_model: usize) -> usize {
        self.head_dim.or(Size::new(d_model / self.heads.get())).get()
    }

    fn value_dim(&self, d_model: usize) -> usize {
        self.value_dim.or(Size::new(self.head_dim(d_model))).get()
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
            value_dim: Auto::Is(Size::new(self.value_dim(at.d_model))),
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
        let rolling = self.sink_positions == SinkPositions::Cache;
        let plain = self.causal && !self.strided && self.globals.is_empty() && self.dilation.get() == 1;
        if rolling && (self.sinks.get() == 0 || self.rope == Rope::None || self.alibi || !plain) {
            let wanted =
                "\"stream\" but with rope, sinks and a plain causal window, without alibi, strided and globals";
            return Err(Problem::value("sink_positions", wanted, "cache"));
        }
        if self.d_conv.get() > 0 && !self.causal {
            return Err(Problem::value("d_conv", "0 in attention that is not causal", self.d_conv));
        }
        Problem::unless_not_negative("softcap", self.softcap)?;
        Problem::unless_not_negative("xpos_base", self.xpos_base)?;
        if self.rope == Rope::None && self.xpos_base > 0.0 {
            return Err(Problem::value("xpos_base", "0 without rotary positions", self.xpos_base));
        }
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

    /// Positions of queries and of keys.
    fn rotary(&self, d_model: usize) -> Option<[Rotary; 2]> {
        let pairs = match self.rope {
            Rope::None => return None,
            Rope::Halves => ops::Pairs::Halves,
            Rope::Pairs => ops::Pairs::Interleaved,
        };
        let (c, base) = (self.head_dim(d_model), f64::from(self.rope_base));
        let rotary = Rotary::new(c, self.rotary_dim(d_model), base, self.scaling(), pairs);
        let rotary = Rotary { factor: f64::from(self.rope_attention_factor()), ..rotary };
        Some(match self.xpos_base {
            0.0 => [rotary.clone(), rotary],
            base => {
                let queries = rotary.with_xpos(f64::from(base));
                [queries.clone(), queries.inverse_growth()]
            }
        })
    }

    /// Positions of queries that meet sinks.
    fn to_sinks(&self, d_model: usize) -> Option<Rotary> {
        let last = (self.sinks.get() + self.window.get()).saturating_sub(1) as u64;
        let [queries, _] = self.rotary(d_model).filter(|_| self.sink_positions == SinkPositions::Cache)?;
        Some(Rotary { last, ..queries })
    }

    pub(super) fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Attention> {
        let (d, h, g, c) = (at.d_model, self.heads.get(), self.kv_heads(), self.head_dim(at.d_model));
        let v = self.value_dim(d);
        let norm = |heads: usize| if self.qk_norm_over == Over::All { heads * c } else { c };
        let norms = match self.qk_norm {
            NormKind::None => None,
            kind => Some([
                p.scope("q_norm", |p| Norm::build(kind, at.norm_eps, norm(h), p))?,
                p.scope("k_norm", |p| Norm::build(kind, at.norm_eps, norm(g), p))?,
            ]),
        };
        let zeros = Init::Constant(0.0);
        let sinks = self.sink_logits.then(|| p.param("sinks", &[h], &zeros, Traits::VECTOR)).transpose()?;
        let (rows, k) = ((h + g) * c + g * v, self.d_conv.get());
        let conv = match k {
            0 => None,
            _ => {
                let taps = p.param("conv1d.weight", &[rows, 1, k], &Init::fan_in(k), Traits::TAPS)?;
                Some((taps, p.param("conv1d.bias", &[rows], &Init::fan_in(k), Traits::VECTOR)?, k))
            }
        };
        Ok(Attention {
            sinks,
            conv,
            d_model: d,
            head_dim: c,
            value_dim: v,
            norms,
            to_sinks: self.to_sinks(d),
            sizes: ops::Attention {
                heads: h,
                kv_heads: g,
                scale: self.softmax_scale.or((c as f32).powf(-0.5)),
                mask: Mask {
                    causal: self.causal,
                    window: self.window.get(),
                    dilation: self.dilation.get(),
                    strided: self.strided,
                    sinks: self.sinks.get(),
                    globals: self.globals.iter().map(|&at| at as usize).collect(),
                },
                softcap: self.softcap,
                alibi: self.alibi,
            },
            rotary: self.rotary(d),
            qkv: p.linear("qkv", [rows, d], &Init::fan_in(d), Bias::zeros(self.qkv_bias))?,
            out_proj: p.linear("out_proj", [d, h * v], &at.into_stream(h * v), Bias::zeros(self.out_bias))?,
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
        let narrow =
            Self { value_dim: Auto::Is(Size::new(3)), qk_norm: NormKind::Rms, qkv_bias: true, ..grouped.clone() };
        let together = Self { qk_norm: NormKind::Layer, qk_norm_over: Over::All, ..grouped.clone() };
        let both_ways = Self { causal: false, alibi: true, ..plain.clone() };
        let rolling = Self { sink_positions: SinkPositions::Cache, dilation: Size::new(1), ..sparse.clone() };
        let near = Self { causal: false, ..window.clone() };
        let falling = Self { rope: Rope::Pairs, xpos_base: 20.0, ..plain.clone() };
        let quiet = Self { sink_logits: true, ..window.clone() };
        let short = Self { d_conv: Count::new(3), rotary_dim: Auto::Is(Count::new(2)), ..grouped.clone() };
        let mut all = vec![falling, quiet, short];
        all.extend([
            plain, grouped, window, sparse, global, capped, scaled, narrow, together, both_ways, near, rolling,
        ]);
        all
    }
}

impl Attention {
    /// What the caches of keys and values keep.
    fn kept(&self) -> [CacheSpec; 2] {
        let groups = self.sizes.kv_heads;
        let (window, sinks) = match self.sizes.mask.reach() {
            None => (0, 0),
            Some(reach) => (reach, self.sizes.mask.sinks),
        };
        let spec = |dim: usize| CacheSpec { window, sinks, ..CacheSpec::growing(groups * dim, groups) };
        [spec(self.key_dim()), spec(self.value_dim)]
    }

    /// Columns of a head of keys in the cache.
    fn key_dim(&self) -> usize {
        if self.to_sinks.is_some() { 2 * self.head_dim } else { self.head_dim }
    }

    /// Whether queries and keys are rotated alike and nothing else, so that both are at once, in place.
    fn places_together(&self) -> bool {
        let alike = self.rotary.as_ref().is_none_or(|[of_q, _]| of_q.growth.is_empty());
        alike && self.norms.is_none() && self.to_sinks.is_none()
    }

    /// Queries, keys and values of a position together.
    fn rows(&self) -> usize {
        let (h, g) = (self.sizes.heads, self.sizes.kv_heads);
        (h + g) * self.head_dim + g * self.value_dim
    }

    /// The convolution of x `[b l (h+g)c+gv]`, and the window after the last position.
    fn convolved(&self, cx: &Cx, x: Var, window: LayerState) -> Result<(Var, LayerState)> {
        let Some((taps, bias, _)) = self.conv else { return Ok((x, window)) };
        let [window] = window.into_fixed()?;
        let (taps, bias) = (cx.param(taps), cx.param(bias));
        let (y, last) = causal_conv1d(&x, &taps, Some(&bias), (&window, false), cx.in_place(), &cx.layout)?;
        Ok((y, LayerState::of([last])))
    }

    /// Queries and keys, normed and with their positions.
    fn placed(&self, cx: &Cx, q: Var, k: Var) -> Result<[Var; 2]> {
        let [q, k] = match &self.norms {
            None => [q, k],
            Some([of_q, of_k]) => [self.normed(cx, &q, of_q)?, self.normed(cx, &k, of_k)?],
        };
        let Some([of_q, of_k]) = &self.rotary else { return Ok([q, k]) };
        let (near, k) = (rotate(&q, of_q, &cx.layout)?, rotate(&k, of_k, &cx.layout)?);
        let Some(to_sinks) = &self.to_sinks else { return Ok([near, k]) };
        let far = rotate(&q, to_sinks, &cx.layout)?;
        let (c, sinks) = (self.head_dim, self.sizes.mask.sinks as u64);
        let of_keys = Halves::of_keys(c, sinks, &cx.layout, k.value().device())?;
        Ok([two_halves(&near, &far, &Halves::both(c))?, two_halves(&k, &k, &of_keys)?])
    }

    /// x `[b l heads·c]` normed over as many columns as the norm has weights.
    fn normed(&self, cx: &Cx, x: &Var, norm: &Norm) -> Result<Var> {
        let shape = x.shape().to_vec();
        if norm.width() == x.value().cols() {
            return norm.apply(cx, x);
        }
        let heads = ops::contiguous(x)?.reshape(&[x.value().len() / norm.width(), norm.width()]);
        Ok(norm.apply(cx, &heads)?.reshape(&shape))
    }
}

impl Layer for Attention {
    fn forward(&self, cx: &Cx, x: &Var, state: LayerState) -> Result<(Var, LayerState)> {
        let causal = self.sizes.mask.causal;
        let mut state = state;
        let window = state.split_off(if causal { 2 } else { 0 }); // [b k-1 (h+g)c+gv]
        let [mut past_k, mut past_v] = match causal {
            true => state.into_caches()?,
            false => self.kept().map(|spec| Cache::empty(&spec, cx.layout.b)),
        };
        let (h, g, c) = (self.sizes.heads, self.sizes.kv_heads, self.head_dim);
        let qkv = self.qkv.forward(cx, x)?; // [b l (h+g)c+gv]
        let (qkv, window) = self.convolved(cx, qkv, window)?;
        let qkv = match &self.rotary {
            Some([of_both, _]) if self.places_together() => rotate_columns(qkv, (h + g) * c, of_both, &cx.layout)?,
            _ => qkv,
        };
        let (q, k) = (qkv.columns(0, h * c), qkv.columns(h * c, g * c)); // [b l hc], [b l gc]
        let [q, k] = if self.places_together() { [q, k] } else { self.placed(cx, q, k)? };
        let v = qkv.columns((h + g) * c, g * self.value_dim); // [b l gv]
        let sinks = self.sinks.map(|id| cx.param(id)); // [h]
        let y = attention(&q, &k, &v, sinks.as_ref(), (&past_k, &past_v), &self.sizes, &cx.layout)?; // [b l hv]
        let y = self.out_proj.forward(cx, &y)?; // [b l d]
        if !causal {
            return Ok((y, LayerState::default()));
        }
        past_k.push(&k, &cx.layout)?;
        past_v.push(&v, &cx.layout)?;
        let mut next = LayerState::new([past_k, past_v].map(Slot::Cache));
        next.extend(window);
        Ok((y, next))
    }

    fn state(&self) -> Vec<StateSpec> {
        if !self.sizes.mask.causal {
            return Vec::new();
        }
        let [k, v] = self.kept();
        let mut all = vec![StateSpec::cache("k", k), StateSpec::cache("v", v)];
        all.extend(self.conv.map(|(.., taps)| StateSpec::fixed("conv", &[taps - 1, self.rows()])));
        all
    }

    fn promises(&self) -> Promises {
        let split = if self.sizes.mask.causal { Split::Exact } else { Split::Whole };
        Promises { split, ..Promises::ALL }
    }

    fn cost(&self, context: u64) -> Cost {
        let (d, c, v) = (self.d_model as u64, self.head_dim as u64, self.value_dim as u64);
        let wide = self.key_dim() as u64;
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
        let qkv = (h + g) * c + g * v;
        let taps = self.conv.map_or(0, |(.., taps)| taps as u64);
        let conv = if taps > 0 { qkv * (taps + 1) } else { 0 };
        let params = d * qkv + h * v * d;
        let biases = self.qkv.bias().map_or(0, |_| qkv) + self.out_proj.bias().map_or(0, |_| d);
        let norms: u64 = self.norms.iter().flatten().map(|norm| norm.params() as u64).sum();
        let normed = if self.norms.is_some() { 4 * (h + g) * c } else { 0 };
        let kept = if mask.causal { kept } else { 0 };
        // A key of a head: its product, exponential, and what it adds to the output.
        Cost {
            flops: 2 * params + biases + normed + 2 * conv + h * keys * (2 * wide + 2 * v + 4),
            params: params + biases + conv + norms + self.sinks.map_or(0, |_| h),
            state: g * (wide + v) * kept + qkv * taps.saturating_sub(1),
            kept: qkv + h * v + if taps > 0 { qkv } else { 0 },
        }
    }
}
