use std::fs;

use tempfile::tempdir;

use super::tokenise::SHORT;
use super::*;
use crate::Error;

fn hf() -> Tokenizer {
    Tokenizer::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../elapid/tests/data/bpe.json")).unwrap()
}

fn all(stream: &TokenStream) -> Vec<u32> {
    let mut tokens = vec![0; stream.len() as usize];
    stream.copy(0, &mut tokens).unwrap();
    tokens
}

fn prepare(path: &Path, tokenizer: &Tokenizer, cache: Option<&Path>) -> Result<Corpus> {
    let options = Options { cache: cache.map(Path::to_owned), ..Options::default() };
    let tokenizer = Separator::Eos.apply(tokenizer.clone())?;
    Corpus::prepare(&[Source::Path(path.into())], &HeldOut::Fraction(0.0), &tokenizer, options)
}

#[test]
fn tiny_shakespeare_is_split_by_bytes() {
    for tokenizer in [Tokenizer::byte(), hf()] {
        let corpus =
            Corpus::prepare(&[Source::TinyShakespeare], &HeldOut::Fraction(0.1), &tokenizer, Options::default())
                .unwrap();
        assert_eq!(corpus.train.text_bytes().unwrap(), Some(1_003_854));
        let val = corpus.val.unwrap();
        assert_eq!(val.text_bytes().unwrap(), Some(111_540));
        let text = tokenizer.decode_bytes(&all(&val)).unwrap();
        assert_eq!(text, &TINY_SHAKESPEARE[1_003_854..]);
    }
}

#[test]
fn a_directory_is_read_in_order() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("m")).unwrap();
    for (name, text) in [("z.txt", "last"), ("a.md", "first"), ("m/b.TXT", "middle"), ("c.bin", "not"), ("e.txt", "")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let tokenizer = Tokenizer::byte();
    let stream = prepare(dir.path(), &tokenizer, None).unwrap().train;
    assert_eq!(tokenizer.decode_bytes(&all(&stream)).unwrap(), b"firstmiddlelast");
    assert_eq!(stream.documents(0..stream.len()).collect::<Vec<_>>(), [0, 6, 13]);
    assert_eq!(all(&stream)[5], 257, "a document ends with <eos>");
    let (first, last) = stream.split(7);
    assert_eq!((first.len(), last.documents(0..last.len()).collect::<Vec<_>>()), (7, vec![6]));
    assert_eq!(prepare(&dir.path().join("c.bin"), &tokenizer, None).unwrap().train.len(), 4, "named files of any kind");
}

#[test]
fn no_text_is_an_error() {
    let dir = tempdir().unwrap();
    let error = prepare(dir.path(), &Tokenizer::byte(), None).unwrap_err();
    assert!(error.to_string().contains("no *.txt"), "{error}");
    fs::write(dir.path().join("a.txt"), "").unwrap();
    let error = prepare(dir.path(), &Tokenizer::byte(), None).unwrap_err();
    assert!(error.to_string().contains("empty") && matches!(error, Error::NoText { .. }), "{error}");
    let missing = dir.path().join("missing.txt");
    let error = prepare(&missing, &Tokenizer::byte(), None).unwrap_err();
    assert!(error.to_string().contains("missing.txt"), "{error}");
    for fraction in [1.0, -0.1, f64::NAN] {
        let held_out = HeldOut::Fraction(fraction);
        assert!(
            Corpus::prepare(&[Source::TinyShakespeare], &held_out, &Tokenizer::byte(), Options::default()).is_err()
        );
    }
}

#[test]
fn text_that_is_not_utf8_is_located() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let mut text = "word ".repeat(SHORT / 4).into_bytes();
    let at = text.len();
    text.extend_from_slice(b"\xff end");
    fs::write(&path, text).unwrap();
    for cache in [None, Some(dir.path())] {
        let error = prepare(&path, &hf(), cache).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains(&format!("byte {at},")), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no half cache is left");
    assert!(prepare(&path, &Tokenizer::byte(), None).is_ok());
}

#[test]
fn pieces_give_the_tokens_of_the_whole() {
    let text: String = TINY_SHAKESPEARE[..3 * SHORT + 1000].iter().map(|&b| b as char).collect();
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, &text).unwrap();
    for tokenizer in [Tokenizer::byte(), hf()] {
        let mut whole = tokenizer.encode(&text).unwrap();
        whole.extend(tokenizer.eos());
        assert_eq!(all(&prepare(&path, &tokenizer, None).unwrap().train), whole);
    }
}

/// A tokenizer that does not preserve the text: it composes characters, drops white space, and knows few words.
fn lossy() -> Tokenizer {
    let dir = tempdir().unwrap();
    let vocab: serde_json::Map<_, _> = ["[UNK]", "the", "miller", "é", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(i, t)| (t.to_string(), i.into()))
        .collect();
    let token = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true})
    };
    let definition = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [token(4, "<s>"), token(5, "</s>")],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true},
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab},
    });
    fs::write(dir.path().join("tokenizer.json"), definition.to_string()).unwrap();
    Tokenizer::open(dir.path()).unwrap()
}

#[test]
fn bytes_are_those_of_the_text_wherever_it_is_cut() {
    let dir = tempdir().unwrap();
    let words = "the miller, e\u{301} é 世界 <s> \u{1f980}\u{200d}  \n";
    let texts = [words.to_owned(), " \n ".into(), words.repeat(20_000), "x".repeat(700), "\t".into()];
    for (i, text) in texts.iter().enumerate() {
        fs::write(dir.path().join(format!("{i}.txt")), text).unwrap();
    }
    let total: u64 = texts.iter().map(|text| text.len() as u64).sum();
    for tokenizer in [Tokenizer::byte(), hf(), lossy()] {
        let memory = prepare(dir.path(), &tokenizer, None).unwrap().train;
        prepare(dir.path(), &tokenizer, Some(&dir.path().join("cache"))).unwrap();
        let cached = prepare(dir.path(), &tokenizer, Some(&dir.path().join("cache"))).unwrap().train;
        for stream in [memory, cached] {
            assert_eq!(stream.text_bytes().unwrap(), Some(total));
            let documents: Vec<u64> = stream.documents(0..stream.len()).chain([stream.len()]).collect();
            for (i, text) in texts.iter().enumerate() {
                let (_, from) = stream.split(documents[i]);
                let (document, _) = from.split(documents[i + 1] - documents[i]);
                assert_eq!(document.text_bytes().unwrap(), Some(text.len() as u64), "document {i}");
            }
            for at in [0, 1, 2, 3, 11, stream.len() / 3, stream.len() - 1, stream.len()] {
                let (first, second) = stream.split(at);
                assert_eq!(
                    first.text_bytes().unwrap().unwrap() + second.text_bytes().unwrap().unwrap(),
                    total,
                    "cut at {at}"
                );
            }
        }
    }
    assert_eq!(TokenStream::from_tokens(vec![1, 2], vec![0]).text_bytes().unwrap(), None, "of no text");
}

#[test]
fn a_document_is_the_line_of_a_jsonl() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, "{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": \"other\"}\n").unwrap();
    let stream = prepare(&path, &Tokenizer::byte(), None).unwrap().train;
    assert_eq!(stream.documents(0..stream.len()).collect::<Vec<_>>(), [0, 4]);
    assert_eq!((stream.len(), stream.text_bytes().unwrap()), (10, Some(8)));
    let options = Options { jsonl_field: "body".into(), cache: Some(dir.path().into()), ..Options::default() };
    let error = Corpus::prepare(&[Source::Path(path.clone())], &HeldOut::Fraction(0.0), &Tokenizer::byte(), options);
    assert!(error.unwrap_err().to_string().contains("a.jsonl:1: no field `body`"));
    // Another field is another text, even if there is a cache.
    fs::write(&path, "{\"text\": \"one\", \"body\": \"more\"}").unwrap();
    for (field, tokens) in [("text", 3), ("body", 4), ("text", 3)] {
        let options = Options { jsonl_field: field.into(), cache: Some(dir.path().into()), ..Options::default() };
        let corpus =
            Corpus::prepare(&[Source::Path(path.clone())], &HeldOut::Fraction(0.0), &Tokenizer::byte(), options);
        assert_eq!(corpus.unwrap().train.len(), tokens);
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_a_notice() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "to be or not to be").unwrap();
    // A directory below a file cannot exist, even for root.
    let corpus = prepare(&path, &hf(), Some(&path.join("cache"))).unwrap();
    assert_eq!(corpus.train.text_bytes().unwrap(), Some(18));
    let [notice] = corpus.notices.as_slice() else { panic!("{:?}", corpus.notices) };
    assert!(
        notice.contains("data.cache") && notice.contains("ELAPID_CACHE") && notice.contains("a.txt/cache"),
        "{notice}"
    );
}

#[test]
fn held_out_files_are_not_trained_on() {
    let dir = tempdir().unwrap();
    let d = dir.path().join("d");
    fs::create_dir(&d).unwrap();
    for (name, text) in [("a.txt", "to train"), ("val.txt", "to test")] {
        fs::write(d.join(name), text).unwrap();
    }
    let prepare = |train: &Path, val: &Path| {
        let held_out = HeldOut::Sources(vec![Source::Path(val.into())]);
        Corpus::prepare(&[Source::Path(train.into())], &held_out, &Tokenizer::byte(), Options::default()).unwrap()
    };
    let corpus = prepare(&d, &d.join("../d/val.txt"));
    assert_eq!((corpus.train.len(), corpus.val.unwrap().len()), (8, 7));
    let said =
        |notices: &[String], what: &str| notices.iter().any(|line| line.contains(what) && line.contains("val.txt"));
    assert!(said(&corpus.notices, "held out and therefore not trained on"), "{:?}", corpus.notices);
    let corpus = prepare(&d.join("val.txt"), &d.join("val.txt"));
    assert_eq!((corpus.train.len(), corpus.val.unwrap().len()), (7, 7));
    assert!(said(&corpus.notices, "trained on and held out"), "{:?}", corpus.notices);
}

#[test]
fn a_cache_is_made_once() {
    let dir = tempdir().unwrap();
    let (path, cache) = (dir.path().join("a.txt"), dir.path().join("cache/deep"));
    fs::write(&path, "to be or not to be").unwrap();
    for tokenizer in [Tokenizer::byte(), hf()] {
        let tokenizer = Separator::Eos.apply(tokenizer).unwrap();
        let first = prepare(&path, &tokenizer, Some(&cache)).unwrap();
        let mut calls = 0;
        let mut count = |_| calls += 1;
        let options = Options { cache: Some(cache.clone()), progress: Some(&mut count), ..Options::default() };
        let sources = [Source::Path(path.clone())];
        let second = Corpus::prepare(&sources, &HeldOut::Fraction(0.0), &tokenizer, options).unwrap();
        assert_eq!(calls, 0, "nothing was tokenised");
        assert_eq!(all(&first.train), all(&second.train));
        assert_eq!(all(&first.train), all(&prepare(&path, &tokenizer, None).unwrap().train));
        assert_eq!(second.train.documents(0..99).collect::<Vec<_>>(), [0]);
        assert!(first.notices.is_empty() && second.notices.is_empty());
    }
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
}

#[test]
fn a_stale_cache_is_made_again() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "one").unwrap();
    prepare(&path, &Tokenizer::byte(), Some(dir.path())).unwrap();
    fs::write(&path, "other").unwrap();
    let corpus = prepare(&path, &Tokenizer::byte(), Some(dir.path())).unwrap();
    assert!(corpus.notices[0].contains("the text has changed"), "{:?}", corpus.notices);
    assert_eq!(corpus.train.len(), 6);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "in place of the old one");
}

#[test]
fn a_cache_that_becomes_shorter_is_an_error() {
    let dir = tempdir().unwrap();
    let (path, cache) = (dir.path().join("a.txt"), dir.path().join("cache"));
    fs::write(&path, "word ".repeat(40_000)).unwrap();
    let corpus = prepare(&path, &Tokenizer::byte(), Some(&cache)).unwrap();
    let windows = Windows::new(corpus.train.clone(), 4, 64, 0, false).unwrap();
    let steps = windows.windows_per_epoch() / 4;
    assert!((0..steps).all(|step| windows.batch(step).is_ok()));
    let cache = fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    fs::File::options().write(true).open(&cache).unwrap().set_len(100_000).unwrap();
    let error = (0..steps).find_map(|step| windows.batch(step).err()).unwrap().to_string();
    assert!(error.contains(cache.to_str().unwrap()) && error.contains("became shorter"), "{error}");
}

#[test]
fn a_damaged_cache_is_made_again() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "to be or not to be").unwrap();
    let right = all(&prepare(&path, &Tokenizer::byte(), Some(dir.path())).unwrap().train);
    let is_cache = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|end| end == "tokens");
    let cache = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap()).find(is_cache).unwrap().path();
    let good = fs::read(&cache).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..good.len())
        .map(|i| {
            let mut bytes = good.clone();
            bytes[i] ^= 0x40;
            bytes
        })
        .collect();
    damaged.extend([0, 1, 143, 144, 146, good.len() - 1].map(|len| good[..len].to_vec()));
    damaged.push([good.as_slice(), b"more"].concat());
    // Numbers that overflow.
    damaged.push([&good[..16], &[0xff; 24], &good[40..]].concat());
    for bytes in damaged {
        fs::write(&cache, bytes).unwrap();
        let corpus = prepare(&path, &Tokenizer::byte(), Some(dir.path())).unwrap();
        assert_eq!(corpus.notices.len(), 1);
        assert_eq!(all(&corpus.train), right);
    }
}

#[test]
fn a_wide_vocabulary_has_wide_ids() {
    assert_eq!(store::Width::of(65_536), store::Width::Two);
    assert_eq!(store::Width::of(65_537), store::Width::Four);
}

#[test]
fn held_out_text_of_its_own() {
    let dir = tempdir().unwrap();
    let (train, val) = (dir.path().join("train.txt"), dir.path().join("val.txt"));
    fs::write(&train, "to train").unwrap();
    fs::write(&val, "to test").unwrap();
    let held_out = HeldOut::Sources(vec![Source::Path(val)]);
    let options = Options { cache: Some(dir.path().into()), ..Options::default() };
    let corpus = Corpus::prepare(&[Source::Path(train.clone())], &held_out, &Tokenizer::byte(), options).unwrap();
    assert_eq!((corpus.train.len(), corpus.val.unwrap().len()), (8, 7));
    let corpus =
        Corpus::prepare(&[Source::Path(train)], &HeldOut::Fraction(0.25), &Tokenizer::byte(), Options::default())
            .unwrap();
    let val = corpus.val.unwrap();
    assert_eq!((corpus.train.len(), val.len()), (6, 2));
    assert_eq!((corpus.train.text_bytes().unwrap(), val.text_bytes().unwrap()), (Some(6), Some(2)));
}

#[test]
fn progress_is_told() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, vec![b'a'; 20 << 20]).unwrap();
    let mut told = Vec::new();
    let mut tell = |progress| told.push(progress);
    let options = Options { cache: Some(dir.path().into()), progress: Some(&mut tell), ..Options::default() };
    let tokenizer = Separator::Bos.apply(Tokenizer::byte()).unwrap();
    Corpus::prepare(&[Source::Path(path)], &HeldOut::Fraction(0.1), &tokenizer, options).unwrap();
    assert!(told.len() >= 3 && told.is_sorted_by_key(|progress| progress.bytes));
    let last = told[told.len() - 1];
    assert_eq!((last.bytes, last.total_bytes, last.tokens), (20 << 20, 20 << 20, (20 << 20) + 1));
}
