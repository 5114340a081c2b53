"""/v2: the Open Inference Protocol over REST, so that its clients and platforms use Graft unchanged.

wire      a request's bytes → what it asks; outputs → an answer's bytes (JSON, and tensors after it)
graph     which tensors a model takes and gives, and what has to be run for them
routes    the addresses
describe  metadata, configuration and statistics of a model, as Triton's tools read them
schemas   all of it, for OpenAPI
"""
