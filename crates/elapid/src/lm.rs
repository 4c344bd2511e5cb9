//! The language model: an embedding, blocks, a norm, and a projection to the vocabulary.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use elapid_kernels::packed::{Form, Packed};
use elapid_kernels::reuse::List;

use crate::Layout;
use crate::autograd::{Tape, Var};
use crate::checkpoint::{Checkpoint, Named, SaveOptions, Values};
use crate::config::{ModelConfig, PositionKind};
use crate::embedding::Embedding;
use crate::layer::{At, Cost, Layer, Layers, Promises, Split};
use crate::memory::Needs;
use crate::ops::{Ids, Loss, Targets, cross_entropy, linear, scaled, soft_cap};
use crate::params::{Init, ParamBuilder, ParamId, Params, Role, Source, Traits, Wanted, pack};
use crate::pass::{Cx, Observed};
use crate::stack::{Carry, Stack};
use crate::state::{State, StateKind, StateSpec};
use crate::{DType, Device, Error, Result, Tensor};

/// A language model: its configuration, its parameters, and the structure that uses them.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    config: ModelConfig,
    params: Arc<Params>,
    embedding: Embedding,
    stack: Stack,
    head: ParamId,
    fingerprint: OnceLock<String>,
    state_dtype: DType,
}

/// Tokens of a text that are read in one pass.
const PART: usize = 256;

/// The positions whose logits to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// All, `[b l v]`.
    All,
    /// The last real one of each row, `[b v]`.
    Last,
}

impl LanguageModel {
    /// A new model, its parameters drawn from `seed`.
    ///
    /// # Errors
    /// If the configuration has impossible values.
    pub fn new(config: ModelConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        Needs::of_parameters(&config).check()?;
        Self::build(config, &mut |wanted| wanted.init.values(wanted.name, wanted.shape, seed))
    }

    /// A model whose parameters have only names and shapes and take no memory, to inspect its structure and cost at any
    /// size.
    ///
    /// # Errors
    /// If the configuration has impossible values.
    pub fn without_values(config: ModelConfig) -> Result<Self> {
        let mut params = Params::default();
        let model = Self::structure(config.clone(), &mut ParamBuilder::counting(&mut params), registry(&config))?;
        Ok(Self { params: Arc::new(params), ..model })
    }

    /// The model of a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected, or of another shape than in the configuration; if a value is not finite; if there
    /// is too little memory.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        checkpoint.check_complete(&Self::outline(&checkpoint.config)?)?;
        Needs::of_parameters(&checkpoint.config).check()?;
        Self::build(checkpoint.config.clone(), &mut |wanted| checkpoint.parameter(&wanted))
    }

    /// The model of a checkpoint for inference on a CPU: its weights in a form, or as they are stored.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_as(checkpoint: &Checkpoint, form: Option<Form>) -> Result<Self> {
        let config = &checkpoint.config;
        checkpoint.check_complete(&Self::outline(config)?)?;
        Needs::of_parameters_as(config, form.or(checkpoint.form())).check()?;
        let mut params = Params::default();
        let mut source = |wanted: Wanted<'_>| checkpoint.parameter(&wanted);
        let mut packing = |wanted: Wanted<'_>| -> Result<Option<Packed>> {
            let stored = checkpoint.packed(&wanted)?;
            let Some(form) = form.filter(|&form| stored.as_ref().is_none_or(|stored| stored.form() != form)) else {
                return Ok(stored);
            };
            drop(stored);
            let values = Tensor::new(checkpoint.parameter(&wanted)?, wanted.shape);
            Ok(Some(pack(form, values.rows(), None)?))
        };
        let mut builder = ParamBuilder::new(&mut params, &mut source).packing(&mut packing);
        let model = Self::structure(config.clone(), &mut builder, registry(config))?;
        Ok(Self { params: Arc::new(params), ..model })
    }

    /// The same model for inference on a CPU, its weights in a form.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn with_weights(&self, form: Form) -> Result<Self> {
        Ok(Self {
            params: Arc::new(self.params.packed(form, &HashMap::new())?),
            fingerprint: OnceLock::new(),
            ..self.clone()
        })
    }

    /// [`with_weights`](Self::with_weights), where an error of int4 counts by the mean square of what it is multiplied by while
    /// the model reads `text`. `progress` hears of the tokens that were read.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, or there is too little memory.
    pub fn with_weights_for(&self, form: Form, text: &[u32], progress: impl Fn(usize)) -> Result<Self> {
        let (observed, mut state) = (Arc::<Observed>::default(), self.zero_state(1)?);
        for part in text.chunks(PART) {
            let cx = self.inference(Layout::new(1, part.len())).observed_by(&observed);
            (_, state) = self.logits(&cx, part, state, Positions::All)?;
            progress(part.len());
        }
        let params = Arc::new(self.params.packed(form, &observed.means())?);
        Ok(Self { params, fingerprint: OnceLock::new(), ..self.clone() })
    }

    /// The form of its largest weight, if that is packed.
    pub fn form(&self) -> Option<Form> {
        let largest = self.params.iter().max_by_key(|(_, param)| param.value.len());
        largest.and_then(|(_, param)| param.value.packed().map(Packed::form))
    }

    /// Bytes of the parameters that a step reads: of a table that is only looked up, nothing.
    pub fn bytes_of_step(&self) -> u64 {
        let table = self.embedding.table();
        let looked_up = if table == self.head { 0 } else { self.params.value(table).bytes() as u64 };
        self.params.bytes() - looked_up
    }

    /// Names and shapes of the parameters of a model of this configuration, in order of creation. Takes no memory for their
    /// values.
    ///
    /// # Errors
    /// If the configuration has impossible values.
    pub fn outline(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>> {
        let model = Self::without_values(config.clone())?;
        Ok(model.params.iter().map(|(_, param)| (param.name.clone(), param.value.shape().to_vec())).collect())
    }

    /// The model in a directory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`load`](Self::load).
    pub fn open(dir: &Path) -> Result<Self> {
        Self::load(&Checkpoint::open(dir)?)
    }

    /// A model whose parameters come from `source`.
    ///
    /// # Errors
    /// If the configuration has impossible values, or the source lacks a parameter.
    pub fn build(config: ModelConfig, source: &mut Source<'_>) -> Result<Self> {
        Self::build_with(config.clone(), source, registry(&config))
    }

    /// A model whose layers are made by `layer`, which is called once for each use of a name in the stack, under the prefix
    /// of its parameters' names. Use it to try a layer of your own that is not in the registry.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_with(
        config: ModelConfig,
        source: &mut Source<'_>,
        layer: impl FnMut(&str, &At<'_>, &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>>,
    ) -> Result<Self> {
        let mut params = Params::default();
        let model = Self::structure(config, &mut ParamBuilder::new(&mut params, source), layer)?;
        Ok(Self { params: Arc::new(params), ..model })
    }

    /// The structure of the model; the parameters go into the builder.
    fn structure(
        config: ModelConfig,
        builder: &mut ParamBuilder<'_>,
        layer: impl FnMut(&str, &At<'_>, &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>>,
    ) -> Result<Self> {
        config.validate()?;
        let (v, d) = (config.padded_vocab_size(), config.d_model());
        let settings = &config.stack.model;
        let normal = Init::Normal(settings.initializer_range);
        let embedding = builder.scope("backbone", |p| Embedding::build(settings, v, p))?;
        let stack = builder.scope("backbone", |p| Stack::build(&config.stack, p, layer))?;
        let head = match settings.tie_embeddings {
            true => embedding.table(),
            false => builder.param("lm_head.weight", &[v, d], &normal, Traits::PROJECTION)?,
        };
        Ok(Self {
            config,
            params: Arc::default(),
            embedding,
            stack,
            head,
            fingerprint: OnceLock::new(),
            state_dtype: DType::F32,
        })
    }

    /// Number of parameters of a model of this configuration; a tied head is counted once.
    ///
    /// # Errors
    /// If the configuration has impossible values, or sizes multiply beyond what memory can address.
    pub fn parameter_count(config: &ModelConfig) -> Result<u64> {
        let mut params = Params::default();
        let mut builder = ParamBuilder::counting(&mut params);
        Self::structure(config.clone(), &mut builder, registry(config))?;
        Ok(builder.count())
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Its parameters, mutable. Tapes that still hold them keep the old values.
    pub fn params_mut(&mut self) -> &mut Params {
        self.fingerprint = OnceLock::new();
        Arc::make_mut(&mut self.params)
    }

    /// Invalidates the cached fingerprint after an in-place update on a GPU.
    pub fn changed(&mut self) {
        self.fingerprint = OnceLock::new();
    }

    /// The device of its parameters.
    pub fn device(&self) -> Device {
        self.params.device()
    }

    /// The dtype of its activations.
    pub fn dtype(&self) -> DType {
        self.params.dtype()
    }

    /// The same model on a device, for inference; on a GPU its matrices are kept only in the dtype of the activations.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn to(&self, device: Device, dtype: DType) -> Result<Self> {
        Ok(Self { params: Arc::new(self.params.to(device, dtype, false)?), ..self.clone() })
    }

    /// The same model, whose decoders store the states of heads in a dtype; f32 at first.
    ///
    /// In bf16 a state is half as large, and rounded after every position: its tokens may differ from those of f32. Layers that
    /// have no such step are refused by [`Decoder::new`](crate::decode::Decoder::new).
    #[must_use]
    pub fn with_states_in(self, dtype: DType) -> Self {
        Self { state_dtype: dtype, ..self }
    }

    /// The dtype in which decoders store the states of heads.
    pub fn state_dtype(&self) -> DType {
        self.state_dtype
    }

    /// The same model on a device, for training: f32 parameters, and copies in the dtype of the activations.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn to_train(&self, device: Device, dtype: DType) -> Result<Self> {
        Ok(Self { params: Arc::new(self.params.to(device, dtype, true)?), ..self.clone() })
    }

    /// Writes the model to a directory in the Hugging Face layout.
    ///
    /// # Errors
    /// If a file cannot be written, or a parameter is not finite.
    pub fn save(&self, dir: &Path, options: &SaveOptions) -> Result<()> {
        let params = self.params.to(Device::Cpu, DType::F32, false)?;
        let tensors = params.iter().map(|(_, param)| Named {
            name: param.name.clone(),
            shape: param.value.shape().to_vec(),
            values: match param.value.packed() {
                Some(packed) => Values::Packed(packed),
                None => Values::Numbers(param.value.as_slice()),
            },
            precise: param.traits.role == Role::Precise,
        });
        Ok(crate::checkpoint::save(dir, &self.config, tensors, options)?)
    }

    /// A fingerprint of these parameters and this configuration: 64 hexadecimal digits. A model moved to another device
    /// keeps it if it was computed before.
    ///
    /// # Errors
    /// If a device failed.
    pub fn fingerprint(&self) -> Result<&str> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.config.to_hf_json().to_string().as_bytes());
        let mut bytes = Vec::new();
        for (_, param) in self.params.iter() {
            hasher.update(param.name.as_bytes());
            let value = param.value.to_vec()?;
            for part in value.chunks(1 << 16) {
                bytes.clear();
                part.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
                hasher.update(&bytes);
            }
        }
        Ok(self.fingerprint.get_or_init(|| hasher.finalize().to_hex().to_string()))
    }

    /// The state of `b` sequences that have read nothing.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn zero_state(&self, b: usize) -> Result<State> {
        State::zeros(&self.stack.spec, b, self.device())
    }

    /// Reads a state that this model made, and the notes saved with it.
    ///
    /// # Errors
    /// If the file is damaged or another model made it.
    pub fn load_state(&self, path: &Path) -> Result<(State, HashMap<String, String>)> {
        let (state, notes) = State::load(path, &self.stack.spec, self.fingerprint()?)?;
        Ok((state.to(self.device())?, notes))
    }

    /// Elements that the state of a sequence of `context` positions has: of fixed tensors, and of caches.
    pub fn state_elements(&self, context: u64) -> (u64, u64) {
        let specs = || self.stack.spec.iter().flat_map(|(_, specs)| specs);
        let of = |cached: bool| {
            let is = move |spec: &&StateSpec| matches!(spec.kind, StateKind::Cache(_)) == cached;
            specs().filter(is).map(|spec| spec.elements(context)).sum()
        };
        (of(false), of(true))
    }

    /// The cost of the position after `context` others in the forward pass, including the projection to the vocabulary.
    pub fn cost(&self, context: u64) -> Cost {
        let (v, d) = (self.config.padded_vocab_size() as u64, self.config.d_model() as u64);
        let norm = Cost { flops: 5 * d, params: d, state: 0, kept: d };
        let head = Cost { flops: 2 * v * d, params: v * d, state: 0, kept: 0 };
        self.stack.sublayers.iter().map(|sublayer| sublayer.layer.cost(context) + norm).sum::<Cost>() + norm + head
    }

    /// The cost of one position in the layer that needs the most memory, including its norm.
    pub(crate) fn widest(&self) -> Cost {
        let d = self.config.d_model() as u64;
        let norm = Cost { kept: d, ..Cost::default() };
        let layers = self.stack.sublayers.iter().map(|sublayer| sublayer.layer.cost(0) + norm);
        layers.max_by_key(|cost| cost.kept).unwrap_or_default()
    }

    /// Whether a step depends on the positions of its rows.
    pub(crate) fn reads_positions(&self) -> bool {
        self.config.stack.model.positions != PositionKind::None || self.stack.reads_positions()
    }

    /// Positions that a document may have: those of the table of positions, if there is one.
    pub(crate) fn most_positions(&self) -> u64 {
        match self.config.stack.model.max_positions.get() {
            0 => u64::MAX,
            max => max as u64,
        }
    }

    /// Refuses a position that the table of positions does not have.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn check_position(&self, at: u64) -> Result<()> {
        match self.config.stack.model.max_positions.get() {
            0 => Ok(()),
            max => crate::layout::check_position(at, max),
        }
    }

    /// A pass without gradients.
    pub fn inference(&self, layout: Layout) -> Cx {
        Cx::new(self.params.clone(), None, layout)
    }

    /// A pass of training, recorded on `tape`.
    pub fn training(&self, tape: &Arc<Tape>, layout: Layout) -> Cx {
        Cx::new(self.params.clone(), Some(tape.clone()), layout).in_training()
    }

    /// The normed output of the last layer `[b l d]`, and the state after the last position.
    ///
    /// A state passed by value is updated in place if nothing else holds it. A state passed by reference is left unchanged,
    /// and caches copy the page that they write to.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, or the state does not fit this model or this batch.
    pub fn hidden<'a, 's>(
        &self,
        cx: &Cx,
        tokens: impl Into<Ids<'a>>,
        state: impl Into<Cow<'s, State>>,
        checkpoint_blocks: bool,
    ) -> Result<(Var, State)> {
        let (tokens, state) = (tokens.into(), state.into());
        let on_device;
        let cx = match self.device() {
            Device::Cpu => cx,
            Device::Cuda(gpu) => {
                on_device = cx.laid_out(cx.layout.on(gpu)?);
                &on_device
            }
        };
        let (b, l) = (cx.layout.b, cx.layout.l);
        if tokens.len() != b * l {
            return Err(Error::Argument(format!("{} tokens for {b} rows of {l}", tokens.len())));
        }
        if !state.fits(&self.stack.spec) || state.rows() != b {
            let reason =
                format!("it holds {} rows of another batch or model; wanted {b} rows of this model", state.rows());
            return Err(Error::State { path: None, reason });
        }
        let cx = &cx.starting(state.starts());
        let hidden = self.embedding.forward(cx, tokens)?;
        self.stack.forward(cx, hidden, state.into_owned(), Carry::Keep, checkpoint_blocks, &mut |_, _| Ok(()))
    }

    /// Where a forward pass over `tokens` first has a value that is not finite: a parameter, or a block's output.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn first_non_finite(&self, layout: &Layout, tokens: &[u32], state: &State) -> Result<Option<String>> {
        let broken =
            |x: &Tensor| -> Result<bool> { Ok(elapid_kernels::adamw::first_non_finite(&x.to_vec()?).is_some()) };
        for (_, param) in self.params.iter() {
            if broken(&param.value)? {
                return Ok(Some(format!("parameter {}", param.name)));
            }
        }
        let layout = self.device().gpu().map_or_else(|| Ok(layout.clone()), |gpu| layout.on(gpu))?;
        let cx = self.inference(layout.clone());
        let cx = cx.starting(state.starts());
        let hidden = self.embedding.forward(&cx, tokens.into())?;
        let mut found = None;
        self.stack.forward(&cx, hidden, state.clone(), Carry::Drop, false, &mut |i, output| {
            if found.is_none() && broken(output.value())? {
                found = Some(format!("the output of layer {i}"));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Logits `[b l v]` or `[b v]`, and the state after the last position.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn logits<'a, 's>(
        &self,
        cx: &Cx,
        tokens: impl Into<Ids<'a>>,
        state: impl Into<Cow<'s, State>>,
        positions: Positions,
    ) -> Result<(Var, State)> {
        let (hidden, state) = self.hidden(cx, tokens, state, false)?;
        let hidden = match positions {
            Positions::All => hidden,
            Positions::Last => last_positions(&hidden, &cx.layout)?.into(),
        };
        Ok((self.to_logits(cx, &hidden)?, state))
    }

    /// Logits `[n v]` of the positions `at` of all `b l`, in their order, and the state after the last position of each row.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden), and if a position is outside the batch.
    pub fn logits_at<'a, 's>(
        &self,
        cx: &Cx,
        tokens: impl Into<Ids<'a>>,
        state: impl Into<Cow<'s, State>>,
        at: &[u32],
    ) -> Result<(Tensor, State)> {
        let (hidden, state) = self.hidden(cx, tokens, state, false)?;
        let all = hidden.value().row_count();
        if let Some(&outside) = at.iter().find(|&&at| at as usize >= all) {
            return Err(Error::Argument(format!("position {outside} is not among the {all} of the batch")));
        }
        let logits = self.to_logits(cx, &rows_at(hidden.value(), at)?.into())?;
        Ok((logits.value().clone(), state))
    }

    /// The logits of hidden positions.
    fn to_logits(&self, cx: &Cx, hidden: &Var) -> Result<Var> {
        let settings = &self.config.stack.model;
        let hidden = scaled(hidden, settings.logit_scale)?;
        cx.observe(self.head, &hidden)?;
        let logits = linear(&hidden, &cx.param(self.head), None)?;
        soft_cap(&logits, settings.logit_softcap)
    }

    /// The loss of predicting `targets` (negative ones are ignored) from `tokens`, and the state after the last position.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn loss<'a, 's>(
        &self,
        cx: &Cx,
        tokens: impl Into<Ids<'a>>,
        targets: impl Into<Targets<'a>>,
        state: impl Into<Cow<'s, State>>,
        checkpoint_blocks: bool,
    ) -> Result<(Loss, State)> {
        let (hidden, state) = self.hidden(cx, tokens, state, checkpoint_blocks)?;
        let settings = &self.config.stack.model;
        let hidden = scaled(&hidden, settings.logit_scale)?;
        Ok((cross_entropy(&hidden, &cx.param(self.head), targets, settings.logit_softcap)?, state))
    }

    /// Whether it can continue a sequence.
    ///
    /// # Errors
    /// If a layer sees what follows.
    pub(crate) fn check_continues(&self) -> Result<()> {
        if self.promises().split < Split::Whole {
            return Ok(());
        }
        let what = "a model with a layer that is not causal cannot generate: what it has read depends on what follows";
        Err(Error::Argument(what.into()))
    }

    /// The promises that all its layers keep.
    pub fn promises(&self) -> Promises {
        self.stack.promises()
    }

    /// Its layers.
    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The embedding `[v d]`.
    pub(crate) fn embedding(&self) -> ParamId {
        self.embedding.table()
    }

    /// The projection to the vocabulary `[v d]`: the embedding if tied.
    pub(crate) fn head(&self) -> ParamId {
        self.head
    }
}

/// The layers that a configuration names.
fn registry(
    config: &ModelConfig,
) -> impl FnMut(&str, &At<'_>, &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>> + use<> {
    let stack = config.stack.clone();
    move |name, at, p| stack.build(name, at, p)
}

/// The last real position of each row, `[b d]`.
fn last_positions(hidden: &Var, layout: &Layout) -> Result<Tensor> {
    let on_gpu = hidden.value().gpu().is_some();
    if on_gpu && layout.l == 1 && layout.lengths.is_none() {
        return Ok(hidden.value().reshape(&[layout.b, hidden.value().cols()]));
    }
    let rows = (0..layout.b).map(|b| last_position(b, layout).map(|at| at as u32)).collect::<Result<List<_>>>()?;
    rows_at(hidden.value(), &rows)
}

/// These rows of a matrix, copied.
fn rows_at(hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let d = hidden.cols();
    if let Some(gpu) = hidden.gpu() {
        let mut picked = Tensor::uninit(gpu, hidden.dtype(), &[rows.len(), d])?;
        elapid_kernels::cuda::elementwise::select_rows(&gpu, hidden.mat(), rows, picked.mat_mut())?;
        return Ok(picked);
    }
    Tensor::filled(&[rows.len(), d], |mut picked| {
        rows.iter().enumerate().for_each(|(i, &at)| picked.row(i).copy_from_slice(hidden.rows().row(at as usize)));
        Ok::<(), Error>(())
    })
}

/// Index of the last real position of row `b`.
fn last_position(b: usize, layout: &Layout) -> Result<usize> {
    match layout.segments().len(b, layout.l) {
        0 => Err(Error::Argument(format!("row {b} has no positions: nothing to predict from"))),
        len => Ok(b * layout.l + len - 1),
    }
}
