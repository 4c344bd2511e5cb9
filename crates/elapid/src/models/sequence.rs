//! A model for classification of sequences or regression on them.
//!
//! h = stack(input), y = h Wᵀ at every position. The output for a whole sequence is that of its last position, where causal
//! layers have seen all of it. Positions are embedded tokens, or vectors of real values that go through a linear layer.

use std::borrow::Cow;

use super::Model;
use crate::autograd::Var;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::memory::Needs;
use crate::ops::{Ids, Loss, Targets, cross_entropy, linear, squared_error};
use crate::params::{Init, ParamBuilder, ParamId, Source, Traits};
use crate::pass::Cx;
use crate::stack::Carry;
use crate::state::State;
use crate::{Error, LanguageModel, Result, Tensor};

const HEAD: &str = "head.weight";
const INPUT: &str = "input.weight";

/// The form of inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Values per position; none: a position is a token.
    pub features: Option<usize>,
    /// Number of classes, or of output values.
    pub outputs: usize,
}

/// The positions of a batch.
#[derive(Debug, Clone)]
pub enum Sequence<'a> {
    /// `[b l]`.
    Tokens(Ids<'a>),
    /// `[b l f]`, f32.
    Values(Tensor),
}

/// A stack of layers between an input and a head.
#[derive(Debug, Clone)]
pub struct SequenceModel {
    /// The stack and all parameters. If positions are values, its embedding is not trained.
    core: LanguageModel,
    /// `[d f]`.
    input: Option<ParamId>,
    /// `[n d]`.
    head: ParamId,
}

impl SequenceModel {
    /// A new model, its parameters drawn from `seed`.
    ///
    /// # Errors
    /// If the configuration has impossible values, or an untied projection to the vocabulary.
    pub fn new(config: ModelConfig, form: Form, seed: u64) -> Result<Self> {
        config.validate()?;
        Needs::of_parameters(&config).check()?;
        Self::build(config, form, &mut |wanted| wanted.init.values(wanted.name, wanted.shape, seed))
    }

    fn build(config: ModelConfig, form: Form, source: &mut Source<'_>) -> Result<Self> {
        let mut core = LanguageModel::build(config, source)?;
        let embedding = core.embedding();
        if core.head() != embedding {
            let fix = "set tie_embeddings to true: a sequence model has no projection to the vocabulary";
            return Err(Error::Argument(fix.into()));
        }
        let d = core.params().get(embedding).value.cols();
        let params = core.params_mut();
        if form.features.is_some() {
            params.iter_mut().filter(|(id, _)| *id == embedding).for_each(|(_, param)| param.traits.trainable = false);
        }
        let mut builder = ParamBuilder::new(params, source);
        let input =
            form.features.map(|f| builder.param(INPUT, &[d, f], &Init::fan_in(f), Traits::MATRIX)).transpose()?;
        let head = builder.param(HEAD, &[form.outputs, d], &Init::fan_in(d), Traits::MATRIX)?;
        Ok(Self { core, input, head })
    }

    /// The form of inputs and outputs.
    pub fn form(&self) -> Form {
        let params = self.core.params();
        Form {
            features: self.input.map(|id| params.get(id).value.cols()),
            outputs: params.get(self.head).value.row_count(),
        }
    }

    /// The normed output of the last layer `[b l d]`, and the state after the last position.
    ///
    /// # Errors
    /// If the sequence does not have this model's form, or the state does not fit this model or this batch.
    pub fn hidden<'s>(
        &self,
        cx: &Cx,
        sequence: Sequence<'_>,
        state: impl Into<Cow<'s, State>>,
        recompute: bool,
    ) -> Result<(Var, State)> {
        let (values, input) = match (sequence, self.input) {
            (Sequence::Tokens(tokens), None) => return self.core.hidden(cx, tokens, state, recompute),
            (Sequence::Values(values), Some(input)) => (values, input),
            _ => return Err(Error::Argument("tokens for a model of values, or values for one of tokens".into())),
        };
        let (state, stack) = (state.into(), self.core.stack());
        let layout = self.core.device().gpu().map_or_else(|| Ok(cx.layout.clone()), |gpu| cx.layout.on(gpu))?;
        let cx = &cx.laid_out(layout);
        if !state.fits(&stack.spec) || state.rows() != cx.layout.b {
            let reason = format!("it belongs to another model, or does not have {} rows", cx.layout.b);
            return Err(Error::State { path: None, reason });
        }
        let (b, l, f) = (cx.layout.b, cx.layout.l, self.core.params().get(input).value.cols());
        if values.len() != b * l * f {
            return Err(Error::Argument(format!("{} values for {b} rows of {l} positions of {f}", values.len())));
        }
        let values = values.to(self.core.device(), self.core.dtype())?.reshape(&[b, l, f]);
        let x = linear(&values.into(), &cx.param(input), None)?;
        stack.forward(cx, x, state.into_owned(), Carry::Keep, recompute, &mut |_, _| Ok(()))
    }

    /// Outputs at every position `[b l n]`, values or logits of classes, and the state after the last position.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn answers<'s>(
        &self,
        cx: &Cx,
        sequence: Sequence<'_>,
        state: impl Into<Cow<'s, State>>,
    ) -> Result<(Var, State)> {
        let (hidden, state) = self.hidden(cx, sequence, state, false)?;
        Ok((linear(&hidden, &cx.param(self.head), None)?, state))
    }

    /// The loss of the classes `targets` `[b l]` (negative ones are ignored), and the state after the last position.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden); if a target is not a class.
    pub fn class_loss<'s, 'a>(
        &self,
        cx: &Cx,
        sequence: Sequence<'_>,
        targets: impl Into<Targets<'a>>,
        state: impl Into<Cow<'s, State>>,
        recompute: bool,
    ) -> Result<(Loss, State)> {
        let (hidden, state) = self.hidden(cx, sequence, state, recompute)?;
        Ok((cross_entropy(&hidden, &cx.param(self.head), targets, 0.0)?, state))
    }

    /// The mean squared error of the values `targets` `[b l n]` (NaN is ignored), and the state after the last position.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden); if there are more or fewer targets.
    pub fn value_loss<'s>(
        &self,
        cx: &Cx,
        sequence: Sequence<'_>,
        targets: &Tensor,
        state: impl Into<Cow<'s, State>>,
        recompute: bool,
    ) -> Result<(Var, State)> {
        let (hidden, state) = self.hidden(cx, sequence, state, recompute)?;
        let answers = linear(&hidden, &cx.param(self.head), None)?;
        Ok((squared_error(&answers, targets)?, state))
    }
}

impl Model for SequenceModel {
    fn core(&self) -> &LanguageModel {
        &self.core
    }

    fn core_mut(&mut self) -> &mut LanguageModel {
        &mut self.core
    }

    fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let shape = |name| match checkpoint.shape(name) {
            Some(&[rows, cols]) => Some((rows, cols)),
            _ => None,
        };
        let missing =
            || Error::Argument(format!("no `{HEAD}` of two dimensions: not a checkpoint of a sequence model"));
        let (outputs, _) = shape(HEAD).ok_or_else(missing)?;
        let form = Form { features: shape(INPUT).map(|(_, features)| features), outputs };
        let mut wanted = LanguageModel::outline(&checkpoint.config)?;
        for name in [INPUT, HEAD] {
            wanted.extend(checkpoint.shape(name).map(|shape| (name.to_owned(), shape.to_vec())));
        }
        checkpoint.check_complete(&wanted)?;
        Needs::of_parameters(&checkpoint.config).check()?;
        let mut source = |wanted: crate::params::Wanted<'_>| checkpoint.parameter(&wanted);
        Self::build(checkpoint.config.clone(), form, &mut source)
    }
}
