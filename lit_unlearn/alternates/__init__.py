"""``python -m lit_unlearn.alternates``: alternate answers for the forget questions."""
