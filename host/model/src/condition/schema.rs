//! The condition language as JSON Schema, for the published schema of definitions.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::Op;

/// Stands for a condition wherever a derived schema holds one as plain JSON.
#[derive(Clone, Copy, Debug)]
pub struct ConditionSchema;

impl JsonSchema for ConditionSchema {
    fn schema_name() -> Cow<'static, str> {
        "Condition".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let inner = generator.subschema_for::<Self>();
        let ops: Vec<&str> = Op::ALL.map(Op::as_str).to_vec();
        json_schema!({
            "description": "A test of one field, or a group of conditions; groups nest at most 20 deep.",
            "oneOf": [
                {
                    "type": "object", "required": ["field", "op"], "additionalProperties": false,
                    "properties": {
                        "field": {
                            "type": "string", "maxLength": 512,
                            "description": "A path such as `trigger.body.labels[*].name`."
                        },
                        "op": { "enum": ops },
                        "value": { "description": "What is compared with; `exists` may leave it out." }
                    }
                },
                {
                    "type": "object", "required": ["all"], "additionalProperties": false,
                    "properties": { "all": { "type": "array", "minItems": 1, "items": inner } }
                },
                {
                    "type": "object", "required": ["any"], "additionalProperties": false,
                    "properties": { "any": { "type": "array", "minItems": 1, "items": inner } }
                },
                {
                    "type": "object", "required": ["not"], "additionalProperties": false,
                    "properties": { "not": inner }
                }
            ]
        })
    }
}
