//! Formats of checkpoints: how the tensors of a model lie in the files that other programs write.

pub mod stored;
