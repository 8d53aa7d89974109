//! Configuration files: TOML, or JSON when the name ends in `.json`, with the same keys.
//!
//! A file is a table from which each group of settings takes its own keys; what is left over at the
//! end is an error. So every key is known in one place: the field that holds it.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde_json::{Map, Value};

/// Larger files are not configuration.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// Why a configuration file was refused. The operator must act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as it was named.
    pub file: String,
    /// The key, where one is to blame; entries of lists are counted from 1 (`tunnel[2].local`).
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{}: key `{key}`: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for crate::Exit {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

/// The notation of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// TOML 1.0.
    Toml,
    /// JSON, one object.
    Json,
}

impl Notation {
    /// JSON when the name ends in `.json`, else TOML.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let is_json = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
        if is_json { Self::Json } else { Self::Toml }
    }
}

/// A table of settings that have not been taken yet.
#[derive(Debug)]
pub struct File {
    name: String,
    /// In front of each key in errors; empty for the top table.
    prefix: String,
    table: Map<String, Value>,
    known: Vec<&'static str>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is too large, or is not in its notation.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let wrong = |what| ConfigError { file: name.clone(), key: None, what };
        let size =
            std::fs::metadata(path).map_err(|e| wrong(format!("cannot be read: {e}")))?.len();
        if size > FILE_SIZE_MAX {
            return Err(wrong(format!("is {size} bytes long; the most is {FILE_SIZE_MAX}")));
        }
        let text =
            std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        Self::parse(&name, &text, Notation::of(path))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// When it is not in its notation.
    pub fn parse(name: &str, text: &str, notation: Notation) -> Result<Self, ConfigError> {
        let table = match notation {
            Notation::Toml => parse_toml(text),
            Notation::Json => parse_json(text),
        };
        let table = table.map_err(|what| ConfigError { file: name.to_owned(), key: None, what })?;
        Ok(Self { name: name.to_owned(), prefix: String::new(), table, known: Vec::new() })
    }

    /// The file as it was named.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the keys of the struct `T`, whose fields must all be optional.
    ///
    /// # Errors
    /// Names the key whose value is wrong.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<T, ConfigError> {
        let mut taken = Map::new();
        for &key in keys_of::<T>() {
            self.known.push(key);
            if let Some(value) = self.table.remove(key) {
                self.check_alone::<T>(key, &value)?;
                taken.insert(key.to_owned(), value);
            }
        }
        serde_json::from_value(Value::Object(taken)).map_err(|e| self.error(None, e.to_string()))
    }

    /// All fields are optional, so a table with one key must do by itself; that tells which key is
    /// to blame.
    fn check_alone<T: DeserializeOwned>(
        &self,
        key: &str,
        value: &Value,
    ) -> Result<(), ConfigError> {
        let alone = Map::from_iter([(key.to_owned(), value.clone())]);
        let parsed = serde_json::from_value::<T>(Value::Object(alone));
        parsed.map(drop).map_err(|error| {
            let found = show_short(value);
            self.error(Some(key), format!("{error} (found {found})"))
        })
    }

    /// Takes a list of tables (`[[key]]`), each as its own table.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn take_tables(&mut self, key: &'static str) -> Result<Vec<Self>, ConfigError> {
        self.known.push(key);
        let entries = match self.table.remove(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err(self.error(Some(key), format!("write [[{key}]] entries"))),
        };
        let entry = |(index, value)| match value {
            Value::Object(table) => Ok(Self {
                name: self.name.clone(),
                prefix: format!("{}{key}[{}].", self.prefix, index + 1),
                table,
                known: Vec::new(),
            }),
            _ => Err(self.error(Some(key), format!("write [[{key}]] entries"))),
        };
        entries.into_iter().enumerate().map(entry).collect()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When a key was not taken: names it and the nearest known one.
    pub fn finish(self) -> Result<(), ConfigError> {
        let Some(key) = self.table.keys().next() else { return Ok(()) };
        let near = |known: &&str| strsim::jaro_winkler(key, known);
        let nearest = self.known.iter().copied().max_by(|a, b| near(a).total_cmp(&near(b)));
        let what = match nearest {
            Some(nearest) => format!("there is no such key; the nearest is `{nearest}`"),
            None => "there is no such key".to_owned(),
        };
        Err(self.error(Some(key), what))
    }

    /// An error in this table.
    #[must_use]
    pub fn error(&self, key: Option<&str>, what: String) -> ConfigError {
        let key = key.map(|key| format!("{}{key}", self.prefix));
        ConfigError { file: self.name.clone(), key, what }
    }
}

fn parse_toml(text: &str) -> Result<Map<String, Value>, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        // The error's own form quotes the line, which may hold a misplaced secret.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        format!("line {line} is not TOML: {}", error.message().trim_end().replace('\n', "; "))
    })?;
    Ok(table.into_iter().map(|(key, value)| (key, from_toml(value))).collect())
}

fn parse_json(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(table)) => Ok(table),
        Ok(_) => Err("is not a JSON object; write { \"key\": value, … }".to_owned()),
        Err(error) => Err(format!("is not JSON: {error}")),
    }
}

fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        // JSON has no infinities; as text they are refused by whoever wants a number.
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .map_or_else(|| Value::String(number.to_string()), Value::Number),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(list) => list.into_iter().map(from_toml).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| (key, from_toml(value))).collect())
        }
    }
}

/// A value for an error message, cut to a length that fits a line.
fn show_short(value: &Value) -> String {
    const LEN_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LEN_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The names of the fields of a struct, as serde knows them.
fn keys_of<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut keys: &'static [&'static str] = &[];
    // The answer comes by the side door; the deserialisation itself always fails.
    let _ = T::deserialize(KeyCollector { keys: &mut keys });
    keys
}

struct KeyCollector<'a> {
    keys: &'a mut &'static [&'static str],
}

impl<'de> Deserializer<'de> for KeyCollector<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.keys = fields;
        Err(serde::de::Error::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::{HostPort, Port, Seconds};

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(default, rename_all = "kebab-case")]
    struct Group {
        ctl_port: Option<Port>,
        drain_timeout: Option<Seconds>,
        log_dir: Option<std::path::PathBuf>,
    }

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(default, rename_all = "kebab-case")]
    struct Entry {
        local: Option<HostPort>,
    }

    fn toml(text: &str) -> Result<Group, ConfigError> {
        let mut file = File::parse("z.toml", text, Notation::Toml)?;
        let group = file.take()?;
        for mut table in file.take_tables("tunnel")? {
            table.take::<Entry>()?;
            table.finish()?;
        }
        file.finish()?;
        Ok(group)
    }

    /// TOML and JSON with the same keys mean the same.
    #[test]
    fn both_notations_mean_the_same() {
        let group = toml("ctl-port = 8090\ndrain-timeout = 0.5\nlog-dir = \"/x\"").unwrap();
        let text = r#"{"ctl-port": 8090, "drain-timeout": 0.5, "log-dir": "/x"}"#;
        let mut file = File::parse("z.json", text, Notation::Json).unwrap();
        let same: Group = file.take().unwrap();
        file.finish().unwrap();
        assert_eq!(group.ctl_port, Some(Port(8090)));
        assert_eq!(group.ctl_port, same.ctl_port);
        assert_eq!(group.drain_timeout, same.drain_timeout);
        assert_eq!(group.log_dir, same.log_dir);
        assert_eq!(Notation::of(Path::new("a.JSON")), Notation::Json);
        assert_eq!(Notation::of(Path::new("a.conf")), Notation::Toml);
    }

    /// An unknown key is named together with the nearest known one, in lists too.
    #[test]
    fn unknown_keys_are_named() {
        let error = toml("ctl_port = 1").unwrap_err().to_string();
        assert!(error.contains("`ctl_port`") && error.contains("`ctl-port`"), "{error}");
        let error =
            toml("[[tunnel]]\nlocal='a:1'\n[[tunnel]]\nlocla='a:1'").unwrap_err().to_string();
        assert!(error.contains("`tunnel[2].locla`") && error.contains("`local`"), "{error}");
        assert!(error.starts_with("z.toml: "), "{error}");
    }

    /// A value of the wrong type or out of range names its key and what would be right.
    #[test]
    fn wrong_values_name_their_key() {
        for (text, says) in [
            ("ctl-port = 70000", "0 to 65535"),
            ("ctl-port = \"x\"", "0 to 65535"),
            ("ctl-port = true", "a string or a number"),
            ("ctl-port = {a = 1}", "a string or a number"),
            ("drain-timeout = nan", "number of seconds"),
            ("log-dir = 5", "log-dir"),
            ("tunnel = 5", "[[tunnel]]"),
            ("[tunnel]\nlocal = 'a:1'", "[[tunnel]]"),
            ("[[tunnel]]\nlocal = 'a'", "tunnel[1].local"),
        ] {
            let error = toml(text).unwrap_err();
            let key = error.key.clone().unwrap();
            assert!(text.contains(key.rsplit('.').next().unwrap()), "{error}");
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
    }

    /// A file that is not in its notation names the line and does not quote it.
    #[test]
    fn broken_files_name_the_line() {
        let error = toml("ctl-port = 1\ntoken = hush-hush").unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hush-hush"), "{error}");
        let error = File::parse("z.json", "[]", Notation::Json).unwrap_err().to_string();
        assert!(error.contains("JSON object"), "{error}");
        let error = File::load(Path::new("/nowhere/z.toml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/z.toml"), "{error}");
    }
}
