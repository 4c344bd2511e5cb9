//! A tokenizer from a text: byte-level BPE, as GPT-2 and GPT-NeoX have it (Sennrich et al. 2016, arXiv 1508.07909; Radford et al.
//! 2019). The `tokenizers` crate finds the merges.

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, TokenizerImpl};

use super::error::{Result, TokenizerError};

/// The token between documents, id 0: what a model trained on the text ends a text with.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The fewest ids: a byte has one, and the end of a text.
pub const LEAST: usize = 257;

/// Learns a vocabulary of `vocab_size` ids, or fewer if the text has fewer pairs that repeat, and returns the contents of a
/// `tokenizer.json`.
///
/// Every byte has an id, so any text can be encoded; 0 is [`END_OF_TEXT`]. Each text is cut into words by GPT-2's pattern
/// before pairs are counted, so a text may end anywhere between two lines.
///
/// # Errors
/// If `vocab_size` is below [`LEAST`].
pub fn train(texts: impl Iterator<Item = String> + Send, vocab_size: usize) -> Result<String> {
    let failed = |what: String| TokenizerError::Train { what };
    if vocab_size < LEAST {
        return Err(failed(format!(
            "a vocabulary of {vocab_size}; wanted at least {LEAST}: the bytes, and {END_OF_TEXT}"
        )));
    }
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel> =
        TokenizerImpl::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(bytes))
        .with_decoder(Some(bytes))
        .with_post_processor(Some(ByteLevel::new(false, false, true)));
    tokenizer.train(&mut trainer, texts).map_err(|e| failed(e.to_string()))?;
    tokenizer.to_string(true).map_err(|e| failed(e.to_string()))
}
