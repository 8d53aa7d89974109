//! Lists of CPU cores: `0-3,6`.

use std::str::FromStr;

use zproxy_proto::limits::DATA_CORES_MAX;

/// Cores are numbered below this (the size of the kernel's `cpu_set_t`).
pub const CORE_NUMBERS_MAX: usize = 1024;

const RIGHT: &str = "write core numbers and ranges, for example 0-3,6";

/// Cores as typed, in the order typed, each once. Not yet checked against the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(Vec<usize>);

impl CoreList {
    /// The core numbers.
    #[must_use]
    pub fn numbers(&self) -> &[usize] {
        &self.0
    }

    /// The cores, if this process may use each of them.
    ///
    /// # Errors
    /// Names the first core that does not exist or may not be used, and those that may.
    pub fn check(&self, allowed: &[usize]) -> Result<Vec<usize>, String> {
        self.0.iter().try_for_each(|&core| check_one(core, allowed))?;
        Ok(self.0.clone())
    }
}

impl FromStr for CoreList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = parse_part(part.trim())?;
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(format!("core {core} is listed twice; {RIGHT}"));
                }
                cores.push(core);
            }
        }
        Ok(Self(cores))
    }
}

crate::values::text_value!(CoreList);

fn parse_part(part: &str) -> Result<(usize, usize), String> {
    if part.is_empty() {
        return Err(format!("a core number is missing; {RIGHT}"));
    }
    let (first, last) = match part.split_once('-') {
        Some((first, last)) => (parse_number(first, part)?, parse_number(last, part)?),
        None => {
            let core = parse_number(part, part)?;
            (core, core)
        }
    };
    if first > last {
        return Err(format!("the range {part} runs backwards; write {last}-{first}"));
    }
    Ok((first, last))
}

fn parse_number(digits: &str, part: &str) -> Result<usize, String> {
    let number: usize = digits
        .trim()
        .parse()
        .map_err(|_| format!("\"{part}\" is neither a core number nor a range; {RIGHT}"))?;
    if number >= CORE_NUMBERS_MAX {
        return Err(format!("core {number} cannot exist; the highest is {}", CORE_NUMBERS_MAX - 1));
    }
    Ok(number)
}

/// Checks that one core exists and may be used.
///
/// # Errors
/// Names the core and those that may be used.
pub fn check_one(core: usize, allowed: &[usize]) -> Result<(), String> {
    if allowed.contains(&core) {
        return Ok(());
    }
    let allowed = show(allowed);
    Err(format!("core {core} does not exist or is not ours to use; this process may use {allowed}"))
}

/// The data cores for `--work_thread_nums=N`: the first `count` of `allowed`, going round when
/// there are fewer; 0 or less counts as 1.
///
/// # Errors
/// When there are more than [`DATA_CORES_MAX`].
pub fn first_of(count: i64, allowed: &[usize]) -> Result<Vec<usize>, String> {
    let count = usize::try_from(count.max(1)).unwrap_or(usize::MAX);
    if count > usize::from(DATA_CORES_MAX) {
        return Err(format!("{count} threads are too many; the most is {DATA_CORES_MAX}"));
    }
    Ok(allowed.iter().copied().cycle().take(count).collect())
}

/// Cores as a list with ranges (`0-3,6`), in the order given.
#[must_use]
pub fn show(cores: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => runs.push((core, core)),
        }
    }
    let show_run = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(show_run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers and ranges are read in the order typed.
    #[test]
    fn lists_parse() {
        let cores = |text: &str| text.parse::<CoreList>().map(|list| list.0);
        assert_eq!(cores("0-3,6"), Ok(vec![0, 1, 2, 3, 6]));
        assert_eq!(cores("5"), Ok(vec![5]));
        assert_eq!(cores(" 2 , 0 - 1 "), Ok(vec![2, 0, 1]));
    }

    /// Every wrong list is refused with a message that says what would be right.
    #[test]
    fn wrong_lists_are_refused() {
        for (text, says) in [
            ("", "missing"),
            ("1,,2", "missing"),
            ("a", "0-3,6"),
            ("0-", "0-3,6"),
            ("-1", "0-3,6"),
            ("3-1", "write 1-3"),
            ("1,0-2", "twice"),
            ("1024", "highest is 1023"),
            ("0-99999999999", "highest is 1023"),
            ("99999999999999999999999", "0-3,6"),
        ] {
            let error = text.parse::<CoreList>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    /// A core that the process may not use is named, and so are those it may.
    #[test]
    fn cores_are_checked_against_the_machine() {
        let list: CoreList = "0,2".parse().unwrap();
        assert_eq!(list.check(&[0, 1, 2]), Ok(vec![0, 2]));
        let error = list.check(&[0, 1]).unwrap_err();
        assert!(error.contains("core 2") && error.contains("may use 0-1"), "{error}");
    }

    /// A thread count takes the first cores, goes round, and is at least one.
    #[test]
    fn counts_become_cores() {
        assert_eq!(first_of(1, &[4, 5]), Ok(vec![4]));
        assert_eq!(first_of(5, &[4, 5]), Ok(vec![4, 5, 4, 5, 4]));
        assert_eq!(first_of(0, &[4, 5]), Ok(vec![4]));
        assert_eq!(first_of(-7, &[4, 5]), Ok(vec![4]));
        assert!(first_of(i64::MAX, &[4, 5]).is_err());
    }

    /// Cores are shown in the form in which they are typed.
    #[test]
    fn lists_show() {
        assert_eq!(show(&[0, 1, 2, 3, 6]), "0-3,6");
        assert_eq!(show(&[3, 1]), "3,1");
        assert_eq!(show(&[]), "");
    }
}
