//! The input of the first layer: a row of a table for each token, optionally scaled, normed, and with its position added.

use std::sync::Arc;

use elapid_kernels::positions::Width;

use crate::autograd::Var;
use crate::config::{ModelSettings, PositionKind};
use crate::ops::{self, Ids, NormKind, add_scaled, scaled, sinusoids_like};
use crate::params::{Init, ParamBuilder, ParamId, Traits};
use crate::pass::Cx;
use crate::stack::Norm;
use crate::{Device, Layout, Result};

/// The table of tokens, and how its rows are transformed.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    /// `[v d]`.
    table: ParamId,
    scale: f32,
    positions: Positions,
    norm: Norm,
}

/// Positions in the document that are added.
#[derive(Debug, Clone, Copy)]
enum Positions {
    None,
    /// A table `[max d]`.
    Learned(ParamId, usize),
    /// Sines and cosines (Vaswani et al. 2017, section 3.5).
    Sinusoidal,
}

impl Embedding {
    /// Its parameters under the builder's prefix: `embeddings`, `positions`, `embedding_norm`.
    pub(crate) fn build(settings: &ModelSettings, v: usize, p: &mut ParamBuilder<'_>) -> Result<Self> {
        let d = settings.d_model.get();
        let normal = Init::Normal(settings.initializer_range);
        let table = p.param("embeddings.weight", &[v, d], &normal, Traits::TABLE)?;
        let positions = match settings.positions {
            PositionKind::None => Positions::None,
            PositionKind::Sinusoidal => Positions::Sinusoidal,
            PositionKind::Learned => {
                let max = settings.max_positions.get();
                Positions::Learned(p.param("positions.weight", &[max, d], &normal, Traits::TABLE)?, max)
            }
        };
        let norm = p.scope("embedding_norm", |p| Norm::build(settings.embedding_norm, settings.norm_eps, d, p))?;
        Ok(Self { table, scale: settings.embedding_scale, positions, norm })
    }

    /// The table.
    pub(crate) fn table(&self) -> ParamId {
        self.table
    }

    /// `[b l d]` of the tokens `[b l]`.
    pub(crate) fn forward(&self, cx: &Cx, tokens: Ids<'_>) -> Result<Var> {
        let shape = (cx.layout.b, cx.layout.l);
        let x = scaled(&ops::embedding(tokens, &cx.param(self.table), shape)?, self.scale)?;
        let x = match self.positions {
            Positions::None => x,
            Positions::Sinusoidal => add_scaled(&x, 1.0, &sinusoids_like(x.value(), &cx.layout)?.into(), 1.0)?,
            Positions::Learned(table, max) => {
                let ids = position_ids(&cx.layout, x.value().device(), max)?;
                add_scaled(&x, 1.0, &ops::embedding(ids, &cx.param(table), shape)?, 1.0)?
            }
        };
        match self.norm.kind {
            NormKind::None => Ok(x),
            _ => self.norm.apply(cx, &x),
        }
    }
}

/// Positions in documents as ids of a table of `max` rows.
fn position_ids(layout: &Layout, device: Device, max: usize) -> Result<Ids<'static>> {
    layout.check_positions(max)?;
    match device {
        Device::Cpu => Ok(Ids::Host(layout.document_positions()?.into_iter().map(|at| at as u32).collect())),
        Device::Cuda(gpu) => Ok(Ids::Device(Arc::new(layout.positions_as(gpu, Width::U32)?))),
    }
}
