"""/v2: the Open Inference Protocol over REST, so that its clients and platforms can use Graft unchanged.

wire      request bytes → InferRequest; outputs → response bytes (JSON, then binary tensors)
tensors   the inputs and outputs of a model, and what has to be run for them
routes    the routes
describe  metadata, configuration and statistics of a model, in the form that Triton's tools read
schemas   the JSON of responses, and all of it for OpenAPI
"""
