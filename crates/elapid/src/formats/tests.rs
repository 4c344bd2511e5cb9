use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::names::Config;
use super::stored::{Stored, StoredError};
use super::{FORMATS, Format};

/// Shape and bytes of every tensor of a file.
type File = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn layout(config: &Map<String, Value>) -> &'static Format {
    FORMATS.iter().find(|layout| config["model_type"] == layout.model_type).unwrap()
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

/// The shape that an expression gives for the tensors of a file: a tensor that is reshaped is flat here.
fn shape(stored: &Stored, of: &dyn Fn(&str) -> Vec<usize>) -> Vec<usize> {
    match stored {
        Stored::File { name, shape: None } => of(name),
        Stored::File { shape: Some(there), .. } => vec![there.iter().product()],
        Stored::Rows(parts) => {
            let mut first = shape(&parts[0].1, of);
            first[0] = parts.iter().map(|(rows, _)| rows).sum();
            first
        }
        Stored::Stack(parts) => [&[parts.len()][..], &shape(&parts[0], of)].concat(),
        Stored::Transposed(of_) => shape(of_, of).into_iter().rev().collect(),
        Stored::Grouped { of: of_, .. } => shape(of_, of),
    }
}

/// Every tensor of the file is used once or ignored, with the shape that it has; gives elapid's tensors.
fn map(config: &Map<String, Value>, shapes: &BTreeMap<String, Vec<usize>>) -> Vec<(String, Vec<usize>, Stored)> {
    let layout = layout(config);
    let of = |name: &str| shapes.get(name).unwrap_or_else(|| panic!("no tensor {name} in the file")).clone();
    let mut unused: BTreeMap<_, _> = shapes.iter().filter(|(name, _)| !(layout.ignores)(name)).collect();
    let mut all: Vec<(String, Vec<usize>, Stored)> = Vec::new();
    for (ours, stored) in (layout.tensors)(&Config(config)).unwrap().0 {
        let shape = shape(&stored, &of);
        for (name, there) in stored.files(&shape).unwrap_or_else(|error| panic!("{ours}: {error}")) {
            assert_eq!(there, of(name), "{ours}: {name}");
            assert!(unused.remove(&name.to_owned()).is_some(), "{name} is used twice");
        }
        assert!(all.iter().all(|(other, ..)| *other != ours), "{ours} twice");
        all.push((ours, shape, stored));
    }
    assert!(unused.is_empty(), "not used: {unused:?}");
    all
}

/// A model's name, its configuration, and its tensors' shapes.
type Fixture = (String, Map<String, Value>, BTreeMap<String, Vec<usize>>);

fn fixtures() -> Vec<Fixture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let mut file = object(&fs::read_to_string(&path).unwrap());
            let tensors = serde_json::from_value(file.remove("tensors").unwrap()).unwrap();
            let config = serde_json::from_value(file.remove("config").unwrap()).unwrap();
            all.push((path.file_stem().unwrap().to_string_lossy().into_owned(), config, tensors));
        }
    }
    all
}

/// The names and shapes of a small model of each format, as its own library writes them.
#[test]
fn every_tensor_of_every_format_has_its_place() {
    let fixtures = fixtures();
    for layout in FORMATS {
        let known = |(_, config, _): &Fixture| config["model_type"] == layout.model_type;
        assert!(fixtures.iter().any(known), "no fixture of {}", layout.model_type);
    }
    for (name, config, shapes) in &fixtures {
        println!("{name}");
        map(config, shapes);
    }
}

/// What is read is written back bit for bit, for real tensors: those of the folders in the directory that
/// `ELAPID_GOLDEN_FORMATS` names, else of the models in `golden/`.
#[test]
fn tensors_are_written_back_bit_for_bit() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let dir = std::env::var_os("ELAPID_GOLDEN_FORMATS").map_or(golden, Into::into);
    let mut models = 0;
    for folder in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let (Ok(config), Ok(bytes)) =
            (fs::read_to_string(folder.join("config.json")), fs::read(folder.join("model.safetensors")))
        else {
            continue;
        };
        println!("{}", folder.display());
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let file: File = parsed
            .iter()
            .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec())))
            .collect();
        let shapes = file.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
        let mut back = File::new();
        for (ours, shape, stored) in map(&object(&config), &shapes) {
            let words = |bytes: &[u8]| bytes.as_chunks::<4>().0.to_vec();
            let values = stored.read(&shape, &mut |name, _| Ok::<_, StoredError>(words(&file[name].1))).unwrap();
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{ours}");
            let mut put = |name: &str, shape: &[usize], values: &[[u8; 4]]| {
                back.insert(name.to_owned(), (shape.to_vec(), values.concat()));
                Ok::<_, StoredError>(())
            };
            stored.write(&shape, &values, &mut put).unwrap();
        }
        assert!(back.iter().all(|(name, tensor)| file[name] == *tensor));
        models += 1;
    }
    assert!(models >= 2, "{models} models");
}
