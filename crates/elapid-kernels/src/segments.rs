//! Where sequences of a batch end, and where documents begin inside them.

use crate::cuda::{self, Gpu};
use crate::error::{Check, Result};

/// How the rows of a batch `[b l]` are divided: right padding and packed documents.
///
/// The default, `Segments::default()`, is a batch of full rows, each one document.
#[derive(Debug, Clone, Copy, Default)]
pub struct Segments<'a> {
    /// `[b]`: positions at or after a row's length are padding: their outputs and input gradients are 0, and the
    /// final state is the one after the last real position.
    pub lengths: Option<&'a [u32]>,
    /// `[b l]`: where non-zero, the state and the convolution window are reset before that position.
    pub resets: Option<&'a [u8]>,
}

impl<'a> Segments<'a> {
    /// Checks the sizes against a batch of `b` rows of `l` positions.
    pub(crate) fn check(&self, op: &'static str, b: usize, l: usize) -> Result<()> {
        let check = Check(op);
        let positions = check.product("b l", &[b, l])?;
        if let Some(lengths) = self.lengths {
            check.len("lengths", lengths.len(), b)?;
            for &len in lengths {
                check.that(len as usize <= l, "lengths", || format!("at most {l}"), || format!("{len}"))?;
            }
        }
        self.resets.map_or(Ok(()), |r| check.len("resets", r.len(), positions))
    }

    /// Checks the sizes against a batch of `b` rows of `l` positions, for a caller that passes them to a device.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn check_sizes(&self, b: usize, l: usize) -> Result<()> {
        self.check("segments", b, l)
    }

    /// Real positions of row `b`.
    #[inline]
    pub fn len(&self, b: usize, l: usize) -> usize {
        self.lengths.map_or(l, |lengths| lengths[b] as usize)
    }

    /// Whether the state is reset before position `t` of row `b`.
    #[inline]
    pub fn reset(&self, b: usize, t: usize, l: usize) -> bool {
        self.resets.is_some_and(|r| r[b * l + t] != 0)
    }
}

/// [`Segments`] wherever they are; the default, full rows, is both on the CPU and on every GPU.
#[derive(Debug, Clone, Copy)]
pub enum SegmentsView<'a> {
    /// On the CPU.
    Host(Segments<'a>),
    /// On a GPU.
    Device(cuda::Segments<'a>),
}

impl Default for SegmentsView<'_> {
    fn default() -> Self {
        Self::Host(Segments::default())
    }
}

impl<'a> From<Segments<'a>> for SegmentsView<'a> {
    fn from(segments: Segments<'a>) -> Self {
        Self::Host(segments)
    }
}

impl<'a> From<cuda::Segments<'a>> for SegmentsView<'a> {
    fn from(segments: cuda::Segments<'a>) -> Self {
        Self::Device(segments)
    }
}

impl<'a> SegmentsView<'a> {
    /// Checks the sizes against a batch of `b` rows of `l` positions.
    pub(crate) fn check(&self, op: &'static str, b: usize, l: usize) -> Result<()> {
        match self {
            Self::Host(segments) => segments.check(op, b, l),
            Self::Device(segments) => segments.check(op, b, l),
        }
    }

    pub(crate) fn host(self, check: Check) -> Result<Segments<'a>> {
        match self {
            Self::Host(segments) => Ok(segments),
            Self::Device(cuda::Segments { lengths: None, resets: None }) => Ok(Segments::default()),
            Self::Device(segments) => check.wrong_place("segments", None, segments.gpu()),
        }
    }

    pub(crate) fn device(self, check: Check, gpu: Gpu) -> Result<cuda::Segments<'a>> {
        match self {
            Self::Device(segments) if segments.gpu().is_none_or(|on| on == gpu) => Ok(segments),
            Self::Device(segments) => check.wrong_place("segments", Some(gpu), segments.gpu()),
            Self::Host(Segments { lengths: None, resets: None }) => Ok(cuda::Segments::default()),
            Self::Host(_) => check.wrong_place("segments", Some(gpu), None),
        }
    }
}
