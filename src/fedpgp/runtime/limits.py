"""Limits for the files of a run directory, so that a small file cannot take all memory or time; see SECURITY.md."""

JSON = 32 << 20  # bytes of a file of JSON or TOML; the results of 1,000 clients with 1,000 classes have 15 million
RECORDS = 64 << 20  # bytes of a file with a line of JSON for each round or trial; 1,000 rounds of 1,000 clients need 8
ROUNDS = 1_000_000  # of a run; published runs have at most 1,000
IMAGES = 200_000  # of a test set; DomainNet has 176,743, and the intervals of the results need 20 kilobytes for each
CLIENTS = 1_000_000  # of a run; task.clients has the same limit
CLASSES = 1 << 15  # of a softmax; the files of a run have two bytes for the class of an answer
NAME = 1000  # characters of the name of a class or a client; datasets have names of at most 100
NUMBER = 1e100  # largest number in a record of a round, so that sums and squares stay finite
PERCENT = 100 + 1e-6  # largest accuracy; a sum can exceed 100 by its rounding
HEADER = 32 << 20  # bytes of the header of a .safetensors file; 100,000 tensors need 10 million
TENSORS = 1 << 30  # bytes of a file of tensors that is read as a whole, such as the outcomes of a run
PATH = 1001  # points of the path between the shared and the personal models; federation.path_points has the same limit
TEMPLATES = 1000  # hand-written prompts; the authors of CLIP use at most 80
RUNS = 10_000  # methods of a comparison, and seeds of a method
