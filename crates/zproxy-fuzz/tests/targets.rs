//! Every target over what is kept in `fuzz/`: seeds, regressions, and inputs made of them.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use zproxy_fuzz::make::Maker;
use zproxy_fuzz::{TARGETS, Target};

/// Makes other inputs than the usual ones, or the one that failed.
const SEED_VARIABLE: &str = "ZPROXY_FUZZ_SEED";
const SEED: u64 = 1;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The files of a folder, in the order of their names; none when there is no such folder.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a readable folder"))
        .map(|entry| {
            let bytes = fs::read(entry.path()).expect("a readable file");
            (entry.file_name().to_string_lossy().into_owned(), bytes)
        })
        .collect();
    files.sort();
    files
}

/// Runs a target and says which input it failed on, so that it can be kept as a regression.
fn judge(target: &Target, what: &str, input: &[u8]) {
    let run = || (target.run)(input);
    assert!(
        catch_unwind(AssertUnwindSafe(run)).is_ok(),
        "{} fails on {what}: {}",
        target.name,
        input.escape_ascii()
    );
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = files(&fuzz_dir().join("corpus-seeds").join(name));
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let regressions = files(&fuzz_dir().join("regressions").join(name));
    for (file, bytes) in seeds.iter().chain(&regressions) {
        judge(target, file, bytes);
    }
    let corpus: Vec<_> = seeds.into_iter().chain(regressions).map(|(_, bytes)| bytes).collect();
    let seed = std::env::var(SEED_VARIABLE).ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(SEED);
    let mut maker = Maker::new(&corpus, seed);
    for number in 0..target.made {
        let input = maker.next_input();
        judge(target, &format!("made input {number} of {SEED_VARIABLE}={seed}"), &input);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            /// Seeds, regressions and made inputs find nothing.
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        /// Every target is run here, has a libFuzzer program, and nothing else is kept in `fuzz/`.
        #[test]
        fn every_target_is_here() {
            let here = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            let known: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
            assert_eq!(here, known);
            let stems = |folder: &str| -> BTreeSet<String> {
                let entries = fs::read_dir(fuzz_dir().join(folder)).expect("a readable folder");
                let paths = entries.map(|entry| entry.expect("a readable folder").path());
                let stems = paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
                stems.filter(|stem| !stem.starts_with('.')).collect()
            };
            assert_eq!(stems("fuzz_targets"), known);
            assert_eq!(stems("corpus-seeds"), known);
            assert!(stems("regressions").is_subset(&known));
        }
    };
}

targets! {
    openings frames bodies text config control lane registry pool proxy_conn proxy_conn_liar replay
}
