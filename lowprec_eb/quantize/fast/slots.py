"""The buffer that tells a kernel what to do: 64-bit integers, then float32 numbers, by slot.

Plain integers, since first slots and counted ones are added.
"""

from __future__ import annotations

# ---- integers ----------------------------------------------------------------------------------------------------
# The first ones change from call to call.
SOURCE, TARGET = 0, 1  # addresses of elements
SCALES = 2  # address of float32 scales, one a block
ZEROS = 3  # of zero points, one a block; 0: there are none
SEED, OFFSET = 4, 5
MODE = 6  # of rounding; a kernel compiled for one knows it already
LAYOUT = 7
LENGTH = 8  # elements along the axis of the blocks
SIZE = 9  # elements of a block along that axis
BLOCKS = 10  # blocks along that axis
INNER = 11  # elements behind one index of that axis
RULE = 12
ELEMENT_EXPONENT = 13  # of the element's largest value, for shared exponents
LOWEST_EXPONENT = 14
STEP_EXPONENT = 15  # of an integer element's step
NAN_SEEN = 16  # written by a kernel: a NaN was rounded, or, where it stores codes, an infinity
ELEMENT, SCALE_FORMAT = 17, 25  # first slots of a float format: the element's, and the scales'
ROW, STEP = 33, 34  # elements of a row of memory, and how far apart their logical indices are
COUNT_1, COUNT_2 = 35, 36  # rows in a turn of the inner loop over rows, and its turns in one of the next
STRIDE_1, STRIDE_2, STRIDE_3 = 37, 38, 39  # how far the logical index moves with each row, and with each such turn
PAIRS = 40  # 1: rows come in pairs whose elements share random numbers, if the first index is even
CODES = 41  # address of 8-bit codes
INTEGERS = 42

# Slots of one float format, counted from its first.
MANTISSA = 0  # bits
MASK = 1  # of the significand bits that go
HALF = 2  # of the last bit that stays
ODD = 3  # 1 if there is a bit that goes, so that ties can be
NORMAL = 4  # bit pattern of the smallest normal number
LARGEST = 5  # of the largest finite one
BEYOND = 6  # of what a larger finite one becomes
INFINITE = 7  # of what an infinity becomes

# ---- float32 numbers ---------------------------------------------------------------------------------------------
REALS_AT = 8 * INTEGERS  # bytes
CONSTANT_SCALE = 0  # of every element, without blocks
LOW, HIGH = 1, 2  # codes of integer elements; of affine ones LOW is 1 if codes count from the minimum
PASSES = 3  # magnitudes from here on pass unrounded
TOLERANCE = 4  # relative error of a quotient
LEVELS = 5  # divisor of the largest magnitude
TENSOR_SCALE = 6
SMALLEST_SCALE, LARGEST_SCALE = 7, 8
DOWN_1, DOWN_2 = 9, 10  # x * DOWN_1 * DOWN_2 counts the steps of subnormals; two factors, since one may overflow
UP_1, UP_2 = 11, 12  # and back
MAGIC = 13  # |x| + MAGIC - MAGIC rounds to the step of subnormals
SCALE_MAGIC = 14  # the same of the scales' format
LARGEST_RESULT = 15  # finite number of the tensor's dtype
REALS = 16

# ---- the buffer of a team of threads -----------------------------------------------------------------------------
TASK_KERNEL, TASK_COUNT = 0, 1  # address of the kernel, number of tasks
NEXT_TASK = 2  # the first that no thread has taken
TASKS = 3  # from here on: address of a buffer, first, last

# ---- values of MODE ----------------------------------------------------------------------------------------------
NEAREST, NEAREST_AWAY, TOWARD_ZERO, STOCHASTIC = 0, 1, 2, 3

# ---- values of LAYOUT: a tensor is seen as (outer, length, inner) around the axis of the blocks ------------------
NO_BLOCKS = 0  # one scale for every element
RUNS = 1  # inner = 1: each block is a run of consecutive elements
SLICES = 2  # one block for each index of the axis, over all of outer and inner
STRIPES = 3  # inner > 1: a block is SIZE elements, INNER apart

# ---- values of RULE: where a block's scale comes from ------------------------------------------------------------
GIVEN = 0
SHARED_EXPONENT = 1
FLOAT32_SCALE = 2
ROUNDED_SCALE = 3  # to a float format, times the tensor's scale
