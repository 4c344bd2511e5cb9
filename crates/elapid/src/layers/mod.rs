//! The registry of layers: one file per family, and a word for each here.
//!
//! A layer's file has its `Settings` (documentation, defaults, `check`, `resolved`, `build`, `small` for the tests that every layer
//! runs) and its [`Layer`]. Everything else follows from the word in `layers!`.

pub mod attention;
pub mod base_conv;
pub mod diagonal;
pub mod gated_conv;
pub mod gla;
pub mod gru;
pub mod hgrn2;
pub mod linear_attention;
pub mod lru;
pub mod lstm;
pub mod mamba1;
pub mod mamba2;
pub mod mlp;
pub mod moe;
pub mod recurrent;
pub mod retnet;
pub mod rg_lru;
pub mod rnn;
pub mod s5;
pub mod slstm;
pub mod sum;

use std::any::Any;
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeValue;

pub use attention::Attention;
pub use base_conv::BaseConv;
pub use diagonal::Diagonal;
pub use gated_conv::GatedConv;
pub use gla::Gla;
pub use hgrn2::Hgrn2;
pub use linear_attention::LinearAttention;
pub use mamba1::Mamba1;
pub use mamba2::Mamba2;
pub use mlp::Mlp;
pub use moe::Moe;
pub use recurrent::Recurrent;
pub use retnet::Retnet;
pub use rg_lru::RgLru;
pub use slstm::Slstm;
pub use sum::Sum;

use crate::Result;
use crate::layer::{At, Layer};
use crate::params::ParamBuilder;
use crate::settings::{self, Field, Problem, Settings as _};

macro_rules! layers {
    ($($kind:ident),+ $(,)?) => {
        /// The settings of a layer.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(non_camel_case_types, missing_docs, reason = "variants are the kinds, as files name them")]
        pub enum LayerConfig { $( $kind($kind::Settings) ),+ }

        /// The kinds of layers.
        pub const KINDS: &[&str] = &[$( stringify!($kind) ),+];

        impl LayerConfig {
            /// The default settings of a kind; none if there is no such kind.
            pub fn of(kind: &str) -> Option<Self> {
                match kind {
                    $( stringify!($kind) => Some(Self::$kind($kind::Settings::default())), )+
                    _ => None,
                }
            }

            /// Small settings of every kind, for tests that run over all layers.
            pub fn small() -> Vec<Self> {
                let mut all = Vec::new();
                $( all.extend($kind::Settings::small().into_iter().map(Self::$kind)); )+
                all
            }

            /// Reads the settings of a kind from the table at `path`; none if there is no such kind.
            ///
            /// # Errors
            /// As [`settings::read`].
            pub fn read(kind: &str, path: &str, value: Spanned<DeValue<'_>>) -> Option<Result<Self, Problem>> {
                match kind {
                    $( stringify!($kind) => Some(settings::read(path, value).map(Self::$kind)), )+
                    _ => None,
                }
            }

            /// The settings themselves, if they are of this type.
            pub fn settings<S: Any>(&self) -> Option<&S> {
                match self { $( Self::$kind(settings) => (settings as &dyn Any).downcast_ref(), )+ }
            }

            /// The settings themselves, mutable.
            pub fn settings_mut<S: Any>(&mut self) -> Option<&mut S> {
                match self { $( Self::$kind(settings) => (settings as &mut dyn Any).downcast_mut(), )+ }
            }

            /// Its kind.
            pub fn kind(&self) -> &'static str {
                match self { $( Self::$kind(_) => stringify!($kind), )+ }
            }

            /// The fields of its settings.
            pub fn fields(&self) -> &'static [Field] {
                match self { $( Self::$kind(_) => $kind::Settings::FIELDS, )+ }
            }

            /// Their values as TOML.
            pub fn values(&self) -> Vec<String> {
                match self { $( Self::$kind(settings) => settings.values(), )+ }
            }

            /// The same settings with what "auto" stands for.
            #[must_use]
            pub fn resolved(&self, at: &At<'_>) -> Self {
                match self { $( Self::$kind(settings) => Self::$kind(settings.resolved(at)), )+ }
            }

            /// Checks what the types of the settings do not.
            ///
            /// # Errors
            /// The first setting with an impossible value.
            pub fn check(&self, at: &At<'_>) -> Result<(), Problem> {
                match self { $( Self::$kind(settings) => settings.check(at), )+ }
            }

            /// The layer, its parameters under the builder's prefix.
            ///
            /// # Errors
            /// If the source of parameters lacks one.
            pub fn build(&self, at: &At<'_>, p: &mut ParamBuilder<'_>) -> Result<Arc<dyn Layer>> {
                match self { $( Self::$kind(settings) => Ok(Arc::new(settings.build(at, p)?)), )+ }
            }
        }
    };
}

layers! {
    attention, base_conv, gated_conv, gla, gru, hgrn2, linear_attention, lru, lstm, mamba1, mamba2, mlp, moe, retnet, rg_lru, rnn, s5, slstm, sum
}
