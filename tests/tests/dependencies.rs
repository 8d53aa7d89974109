//! What ZProxy is built from: crates of one registry, under licences that go with its own.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Licences that ask for no more than to be named. Of an expression, every part that is needed must be
/// one of them.
const LICENCES: [&str; 4] = ["Apache-2.0", "BSD-3-Clause", "MIT", "Unicode-3.0"];

/// Every crate that the workspace needs on this kind of machine, as cargo knows it.
fn packages() -> Vec<Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("a list").clone()
}

/// Whether an SPDX expression can be met with [`LICENCES`] alone. Brackets stand around alternatives.
fn is_allowed(expression: &str) -> bool {
    expression.split(" AND ").all(|part| {
        let part = part.trim_matches(['(', ')']).replace('/', " OR ");
        part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim()))
    })
}

/// Licences are judged as they are meant.
#[test]
fn licence_expressions() {
    for good in ["MIT", "MIT OR GPL-3.0", "MIT/Apache-2.0", "(MIT OR X) AND Unicode-3.0"] {
        assert!(is_allowed(good), "{good}");
    }
    for bad in ["GPL-3.0", "", "MIT AND GPL-3.0", "(GPL-3.0 OR X) AND MIT"] {
        assert!(!is_allowed(bad), "{bad}");
    }
}

/// Every crate comes from the one registry, with a checksum in the lock file, and under a licence that
/// is allowed; none is taken from a repository or a path outside.
#[test]
fn sources_and_licences() {
    let mut sources = BTreeSet::new();
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence), "{name} has the licence {licence:?}");
        match package["source"].as_str() {
            Some(source) => {
                assert!(source.starts_with("registry+"), "{name} comes from {source}");
                sources.insert(source.to_owned());
            }
            None => {
                assert!(name.starts_with("zproxy"), "{name} comes from a path and is none of ours")
            }
        }
    }
    assert_eq!(sources.len(), 1, "{sources:?}");
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"))
        .expect("the lock file");
    for entry in lock.split("[[package]]").filter(|entry| entry.contains("source = ")) {
        assert!(entry.contains("checksum = "), "no checksum:{entry}");
    }
}
