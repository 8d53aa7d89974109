//! `docs/reliability.md` names a test for each promise. Here: that there are such tests.

use std::fs;
use std::path::Path;

/// Every `file::test` of the page is a function in that file, and no promise is without one.
#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/reliability.md")).expect("the page");
    let mut names = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.contains("| held by |")) {
        let before = names;
        for name in row.split('`').filter(|word| word.contains(".rs::")) {
            let (file, test) = name.split_once("::").expect("file::test");
            let source = fs::read_to_string(root.join(file))
                .unwrap_or_else(|why| panic!("{file} of docs/reliability.md: {why}"));
            let is_there = [format!("fn {test}("), format!("fn {test}<")]
                .iter()
                .any(|declaration| source.contains(declaration));
            assert!(is_there, "there is no test {test} in {file}");
            names += 1;
        }
        assert!(names > before, "a promise without a test: {row}");
    }
    assert!(names >= 40, "only {names} tests are named");
}
