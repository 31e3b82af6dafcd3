//! JSON Schemas of the files people write, for editors: completion, descriptions, and squiggles under what is wrong.
//!
//! Each is generated from the types that the reader of that file reads into, so that a key is in both or in none. A schema says the form; what
//! makes sense only together (a step that is named in `production`) is the reader's to say.

use patchlab_lab::{
    recipe::Recipe,
    scenario::{Fixture, Scenario},
};
use patchlab_protocol::enrolment::Enrolment;
use schemars::Schema;

use crate::{lab::pool::Pool, order};

/// Where the schemas of this version are found by editors.
const PLACE: &str = "docs/schemas";

/// A form of file that has a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// `scenario.toml`.
    Scenario,
    /// `fixture.toml`.
    Fixture,
    /// A baseline's recipe.
    Recipe,
    /// `order.toml`.
    Order,
    /// `patchlab.toml`.
    Settings,
    /// `agent.toml`.
    Agent,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 6] = [Self::Scenario, Self::Fixture, Self::Recipe, Self::Order, Self::Settings, Self::Agent];

    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scenario => "scenario",
            Self::Fixture => "fixture",
            Self::Recipe => "recipe",
            Self::Order => "order",
            Self::Settings => "settings",
            Self::Agent => "agent",
        }
    }

    /// Where its files are found, for people.
    pub fn files(self) -> &'static str {
        match self {
            Self::Scenario => "scenarios/NAME/scenario.toml",
            Self::Fixture => "fixtures/NAME/fixture.toml, in a scenario's folder or beside it",
            Self::Recipe => "images/NAME.toml",
            Self::Order => "order.toml",
            Self::Settings => "patchlab.toml, in the data folder",
            Self::Agent => "agent.toml, on a host",
        }
    }

    /// The schema's file, from the root of the project.
    pub fn path(self) -> String {
        format!("{PLACE}/{}.json", self.name())
    }

    /// The schema.
    pub fn schema(self) -> Schema {
        let mut schema = match self {
            Self::Scenario => Scenario::schema(),
            Self::Fixture => Fixture::schema(),
            Self::Recipe => Recipe::schema(),
            Self::Order => order::schema(),
            Self::Settings => Pool::schema(),
            Self::Agent => Enrolment::schema(),
        };
        schema.insert("title".into(), format!("patchlab {}", self.name()).into());
        schema
    }

    /// The schema as the text of its file.
    pub fn text(self) -> String {
        // A schema is JSON, which can always be written.
        serde_json::to_string_pretty(&self.schema()).unwrap_or_default() + "\n"
    }
}
