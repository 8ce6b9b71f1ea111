"""Control of the learning process: rules on a window of committed steps, a person's orders, and the program that both make.

Every rank has the same window and hears the same gates, so all decide alike without a further message.
"""
