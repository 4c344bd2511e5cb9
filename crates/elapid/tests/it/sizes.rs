//! Sizes of the published models.

use elapid::LanguageModel;
use elapid::config::ModelConfig;
use elapid::params::Wanted;

#[test]
fn published_models_have_their_number_of_parameters() {
    let published = [
        ("130m", 129_135_360),
        ("370m", 371_516_416),
        ("790m", 793_204_224),
        ("1.4b", 1_372_178_432),
        ("2.8b", 2_768_345_600),
    ];
    for (name, count) in published {
        let config = ModelConfig::mamba1(name).unwrap();
        assert_eq!(LanguageModel::parameter_count(&config).unwrap(), count, "{name}");
    }
}

#[test]
fn a_built_model_has_the_parameters_that_its_configuration_counts() {
    for name in ["130m", "64x3"] {
        let config = ModelConfig::mamba1(name).unwrap();
        let mut counted = 0;
        let model = LanguageModel::build(config.clone(), &mut |wanted: Wanted<'_>| {
            counted += wanted.shape.iter().product::<usize>();
            Ok(vec![0.0; wanted.shape.iter().product()])
        })
        .unwrap();
        assert_eq!(counted as u64, LanguageModel::parameter_count(&config).unwrap());
        assert_eq!(counted, model.params().count());
        // Tied: the embedding is read once as rows, and once whole by the output projection.
        assert_eq!(model.cost(0).params, LanguageModel::parameter_count(&config).unwrap(), "{name}");
    }
}

#[test]
fn cost_of_a_token_is_about_two_operations_a_parameter() {
    let config = ModelConfig::mamba1("130m").unwrap();
    let count = LanguageModel::parameter_count(&config).unwrap();
    let model = LanguageModel::build(config, &mut |wanted| Ok(vec![0.0; wanted.shape.iter().product()])).unwrap();
    let cost = model.cost(0);
    let ratio = cost.flops as f64 / (2 * count) as f64;
    assert!((1.0..1.05).contains(&ratio), "{ratio}");
    assert_eq!(cost.state, 24 * 1536 * (16 + 3));
}
