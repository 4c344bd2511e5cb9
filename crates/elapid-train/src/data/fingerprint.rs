//! The fingerprint of tokens, which a resumed run must match.

use elapid::tokenizer::Tokenizer;
use rayon::prelude::*;

use super::{Corpus, TokenStream};
use crate::Result;

/// Tokens that are hashed together.
const PART: u64 = 1 << 18;

impl Corpus {
    /// A fingerprint of these training and held-out tokens and this tokenizer: 64 hexadecimal digits. If `packed`, it covers
    /// where documents begin too.
    ///
    /// # Errors
    /// If a cache file cannot be read.
    pub(crate) fn fingerprint(&self, tokenizer: &Tokenizer, packed: bool) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&tokenizer.fingerprint());
        for stream in [Some(&self.train), self.val.as_ref()] {
            hasher.update(&stream.map_or(Ok([0; 32]), |stream| stream.fingerprint(packed))?);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

impl TokenStream {
    fn fingerprint(&self, packed: bool) -> Result<[u8; 32]> {
        let part = |from: u64| {
            let mut tokens = vec![0; PART.min(self.len() - from) as usize];
            self.copy(from, &mut tokens)?;
            let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
            Ok(*blake3::hash(&bytes).as_bytes())
        };
        let starts: Vec<u64> = (0..self.len()).step_by(PART as usize).collect();
        let parts: Vec<[u8; 32]> = starts.into_par_iter().map(part).collect::<Result<_>>()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.len().to_le_bytes());
        for part in &parts {
            hasher.update(part);
        }
        for at in self.documents(0..self.len()).filter(|_| packed) {
            hasher.update(&at.to_le_bytes());
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: &[u32], documents: &[u64], val: Option<&[u32]>, packed: bool) -> String {
        let stream = |tokens: &[u32], documents: &[u64]| TokenStream::from_tokens(tokens.to_vec(), documents.to_vec());
        let val = val.map(|val| stream(val, &[0]));
        let corpus = Corpus { train: stream(tokens, documents), val, notices: Vec::new() };
        corpus.fingerprint(&Tokenizer::byte(), packed).unwrap()
    }

    #[test]
    fn every_token_counts() {
        let tokens: Vec<u32> = (0..PART as u32 + 9).map(|i| i % 251).collect();
        let wanted = of(&tokens, &[0], None, false);
        assert_eq!(wanted, of(&tokens, &[0, 7], None, false), "documents count only where they are packed");
        assert_ne!(of(&tokens, &[0], None, true), of(&tokens, &[0, 7], None, true));
        for at in [0, PART as usize - 1, PART as usize, tokens.len() - 1] {
            let mut other = tokens.clone();
            other[at] += 1;
            assert_ne!(wanted, of(&other, &[0], None, false), "{at}");
        }
        assert_ne!(wanted, of(&tokens[..tokens.len() - 1], &[0], None, false));
        assert_ne!(wanted, of(&tokens, &[0], Some(&[]), false));
        assert_ne!(of(&tokens, &[0], Some(&[1]), false), of(&tokens, &[0], Some(&[2]), false));
    }

    #[test]
    fn a_part_has_the_fingerprint_of_its_tokens() {
        let whole = TokenStream::from_tokens((0..100).collect(), vec![0, 50]);
        let alone = TokenStream::from_tokens((40..100).collect(), vec![10]);
        assert_eq!(whole.split(40).1.fingerprint(true).unwrap(), alone.fingerprint(true).unwrap());
    }
}
