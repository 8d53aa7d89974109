//! What is made of the results: tables, Markdown, plots, and a comparison with what was promised.

pub(crate) mod markdown;
pub(crate) mod plot;
pub(crate) mod table;
pub(crate) mod targets;
pub(crate) mod views;
