-- The model of a request as the node's own parser will see it: the last of repeated keys, escapes resolved. Empty for
-- what is no JSON object with a model, and for a name with control characters, which a map would read otherwise.
-- (HAProxy's json_query takes the first of repeated keys: it would judge another model than the one that answers.)
local cjson = require("cjson")

core.register_converters("json_model", function(body)
  local read, request = pcall(cjson.decode, body)
  local model = read and type(request) == "table" and request.model
  if type(model) ~= "string" or model:find("%c") then
    return ""
  end
  return model
end)
